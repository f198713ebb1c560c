package replog

import (
	"fmt"
	"net/netip"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/pagurus-project/pagurus/migrate"
	raftlogv1 "github.com/pagurus-project/pagurus/proto/raftlog/v1"
)

func recordToProto(r migrate.Record) *raftlogv1.Record {
	return &raftlogv1.Record{
		Id: r.ID, Key: r.Key, Pid: int64(r.PID), From: r.From, To: r.To, Options: optionsToProto(r.Options),
		State: string(r.State), Epoch: r.Epoch, Command: r.Command, Reason: r.Reason,
		Blockers: findingsToProto(r.Blockers), Warnings: findingsToProto(r.Warnings),
		Source: string(r.Source), Target: string(r.Target), Forgotten: r.Forgotten,
		Measured: measuredToProto(r.Measured), Created: timestamp(r.Created), Ended: timestamp(r.Ended),
		Addresses: prefixesToProto(r.Addresses),
	}
}

func recordFromProto(m *raftlogv1.Record) (migrate.Record, error) {
	options, err := optionsFromProto(m.GetOptions())
	if err != nil {
		return migrate.Record{}, err
	}
	addresses, err := prefixesFromProto(m.GetAddresses())
	r := migrate.Record{
		ID: m.GetId(), Key: m.GetKey(), PID: int(m.GetPid()), From: m.GetFrom(), To: m.GetTo(),
		Options: options, Addresses: addresses, State: migrate.State(m.GetState()), Epoch: m.GetEpoch(),
		Command: m.GetCommand(), Reason: m.GetReason(),
		Blockers: findingsFromProto(m.GetBlockers()), Warnings: findingsFromProto(m.GetWarnings()),
		Source: migrate.Outcome(m.GetSource()), Target: migrate.Outcome(m.GetTarget()), Forgotten: m.GetForgotten(),
		Measured: measuredFromProto(m.GetMeasured()), Created: timeOf(m.GetCreated()), Ended: timeOf(m.GetEnded()),
	}
	if r.ID == "" || !r.State.Valid() {
		return r, fmt.Errorf("%w: record %q in state %q", errUnreadable, r.ID, r.State)
	}
	return r, err
}

func optionsToProto(o migrate.Options) *raftlogv1.Options {
	var with []string
	for _, a := range o.WithAddresses {
		with = append(with, a.String())
	}
	return &raftlogv1.Options{
		MaxDowntime: durationpb.New(o.MaxDowntime), BandwidthBytes: o.BandwidthBytes, Compress: string(o.Compress),
		MaxRounds: int64(o.MaxRounds), Strict: o.Strict, Rehearse: o.Rehearse, Verify: o.Verify,
		AllowDegraded: o.AllowDegraded, WithAddresses: with,
	}
}

func optionsFromProto(m *raftlogv1.Options) (migrate.Options, error) {
	var with []netip.Addr
	for _, text := range m.GetWithAddresses() {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return migrate.Options{}, fmt.Errorf("%w: %w", errUnreadable, err)
		}
		with = append(with, a)
	}
	return migrate.Options{
		MaxDowntime: m.GetMaxDowntime().AsDuration(), BandwidthBytes: m.GetBandwidthBytes(),
		Compress: migrate.Compression(m.GetCompress()), MaxRounds: int(m.GetMaxRounds()), Strict: m.GetStrict(),
		Rehearse: m.GetRehearse(), Verify: m.GetVerify(), AllowDegraded: m.GetAllowDegraded(), WithAddresses: with,
	}, nil
}

func measuredToProto(m migrate.Measured) *raftlogv1.Measured {
	p := &raftlogv1.Measured{PhasesMs: m.PhasesMS, DowntimeMs: m.DowntimeMS, Bytes: m.Bytes, WireBytes: m.WireBytes}
	for _, r := range m.Rounds {
		p.Rounds = append(p.Rounds, &raftlogv1.Round{
			N: int64(r.N), Pages: r.Pages, Bytes: r.Bytes, WireBytes: r.WireBytes, Ms: r.MS, Frozen: r.Frozen,
		})
	}
	return p
}

func measuredFromProto(p *raftlogv1.Measured) migrate.Measured {
	m := migrate.Measured{
		PhasesMS: p.GetPhasesMs(), DowntimeMS: p.GetDowntimeMs(), Bytes: p.GetBytes(), WireBytes: p.GetWireBytes(),
	}
	for _, r := range p.GetRounds() {
		m.Rounds = append(m.Rounds, migrate.Round{
			N: int(r.GetN()), Pages: r.GetPages(), Bytes: r.GetBytes(), WireBytes: r.GetWireBytes(), MS: r.GetMs(), Frozen: r.GetFrozen(),
		})
	}
	return m
}

func findingsToProto(list []migrate.Finding) []*raftlogv1.Finding {
	var out []*raftlogv1.Finding
	for _, f := range list {
		out = append(out, &raftlogv1.Finding{Code: string(f.Code), Detail: f.Detail, Hint: f.Hint})
	}
	return out
}

func findingsFromProto(list []*raftlogv1.Finding) []migrate.Finding {
	var out []migrate.Finding
	for _, f := range list {
		out = append(out, migrate.Finding{Code: migrate.Code(f.GetCode()), Detail: f.GetDetail(), Hint: f.GetHint()})
	}
	return out
}

// timestamp is absent for the zero time.
func timestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func timeOf(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}
