package agent

import (
	"errors"
	"fmt"
	"net/netip"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pagurus-project/pagurus/migrate"
	migratev1 "github.com/pagurus-project/pagurus/proto/migrate/v1"
)

// optionsOf reads the options of an order and fills in what is zero.
func optionsOf(o *migratev1.Options) (migrate.Options, error) {
	options := migrate.Options{
		MaxDowntime: o.GetMaxDowntime().AsDuration(), BandwidthBytes: o.GetBandwidthBytes(),
		Compress: migrate.Compression(o.GetCompress()), MaxRounds: int(o.GetMaxRounds()),
		Strict: o.GetStrict(), Rehearse: o.GetRehearse(), Verify: o.GetVerify(), AllowDegraded: o.GetAllowDegraded(),
	}
	for _, text := range o.GetWithAddresses() {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return options, fmt.Errorf("options: %w", err)
		}
		options.WithAddresses = append(options.WithAddresses, a)
	}
	if err := options.Validate(); err != nil {
		return options, fmt.Errorf("options: %w", err)
	}
	return options.WithDefaults(), nil
}

// prefixesOf reads the service addresses of an order.
func prefixesOf(list []string) ([]netip.Prefix, error) {
	var all []netip.Prefix
	for _, text := range list {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, status.Error(codes.InvalidArgument, err.Error())
		}
		all = append(all, p)
	}
	return all, nil
}

func findingsToProto(list []migrate.Finding) []*migratev1.Finding {
	var out []*migratev1.Finding
	for _, f := range list {
		out = append(out, &migratev1.Finding{Code: string(f.Code), Detail: f.Detail, Hint: f.Hint})
	}
	return out
}

func processesToProto(list []migrate.Process) []*migratev1.Process {
	var out []*migratev1.Process
	for _, p := range list {
		out = append(out, &migratev1.Process{
			Pid: int32(p.PID), Ppid: int32(p.PPID), Command: p.Command, Uid: uint32(p.UID), State: p.State,
			Threads: uint32(p.Threads), ResidentBytes: p.ResidentBytes, Sockets: uint32(p.Sockets), Migration: p.Migration,
		})
	}
	return out
}

func roundsToProto(list []migrate.Round) []*migratev1.Round {
	var out []*migratev1.Round
	for _, r := range list {
		out = append(out, &migratev1.Round{
			N: uint32(r.N), Pages: r.Pages, Bytes: r.Bytes, WireBytes: r.WireBytes, Ms: r.MS, Frozen: r.Frozen,
		})
	}
	return out
}

func measuredToProto(m migrate.Measured) *migratev1.Promised {
	return &migratev1.Promised{
		Rounds: roundsToProto(m.Rounds), PhasesMs: m.PhasesMS, DowntimeMs: m.DowntimeMS, Bytes: m.Bytes, WireBytes: m.WireBytes,
	}
}

func progressToProto(p migrate.Progress, rounds []migrate.Round) *migratev1.Progress {
	return &migratev1.Progress{
		Round: uint32(p.Round), RoundPages: p.RoundPages, RoundSent: p.RoundSent, Bytes: p.Bytes, WireBytes: p.WireBytes,
		RateBytes: p.RateBytes, DirtyRateBytes: p.DirtyRateBytes, EstimateMs: p.EstimateMS, Rounds: roundsToProto(rounds),
	}
}

func outcomeToProto(o migrate.Outcome) migratev1.Outcome {
	switch o {
	case migrate.OutcomeRunning:
		return migratev1.Outcome_OUTCOME_RUNNING
	case migrate.OutcomeResumed:
		return migratev1.Outcome_OUTCOME_RESUMED
	case migrate.OutcomeReleased:
		return migratev1.Outcome_OUTCOME_RELEASED
	case migrate.OutcomeNeverRan:
		return migratev1.Outcome_OUTCOME_NEVER_RAN
	case migrate.OutcomeKilled:
		return migratev1.Outcome_OUTCOME_KILLED_AT_SOURCE
	case migrate.OutcomeEnded:
		return migratev1.Outcome_OUTCOME_ENDED
	case migrate.OutcomeUnknown:
		return migratev1.Outcome_OUTCOME_UNKNOWN
	}
	return migratev1.Outcome_OUTCOME_UNSPECIFIED
}

// decisionOf reads the log's word.
func decisionOf(d migratev1.Decision) (migrate.Decision, error) {
	switch d {
	case migratev1.Decision_DECISION_COMMIT:
		return migrate.DecisionCommit, nil
	case migratev1.Decision_DECISION_ABORT:
		return migrate.DecisionAbort, nil
	case migratev1.Decision_DECISION_UNSPECIFIED:
		return migrate.DecisionNone, nil
	}
	return migrate.DecisionNone, errors.New("unknown decision")
}
