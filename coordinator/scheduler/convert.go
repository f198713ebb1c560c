package scheduler

import (
	"maps"
	"math"
	"strings"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/pagurus-project/pagurus/migrate"
	migratev1 "github.com/pagurus-project/pagurus/proto/migrate/v1"
)

// Bounds on what an agent may make the coordinator remember, for ever in part:
// far beyond what a sound agent sends.
const (
	maxFindings  = 500
	maxRounds    = 1001
	maxProcesses = 10000
	maxPhases    = 50
	maxText      = 2000
)

func first[T any](list []T, n int) []T { return list[:min(n, len(list))] }

// clip bounds a text, in whole characters.
func clip(s string) string {
	if len(s) <= maxText {
		return s
	}
	return strings.ToValidUTF8(s[:maxText], "") + "..."
}

func findings(list []*migratev1.Finding) []migrate.Finding {
	var out []migrate.Finding
	for _, f := range first(list, maxFindings) {
		out = append(out, migrate.Finding{Code: migrate.Code(clip(f.GetCode())), Detail: clip(f.GetDetail()), Hint: clip(f.GetHint())})
	}
	return out
}

// Processes are what an agent lists.
func Processes(list []*migratev1.Process, host string) []migrate.Process {
	out := make([]migrate.Process, 0, len(list))
	for _, p := range first(list, maxProcesses) {
		out = append(out, migrate.Process{
			PID: int(p.GetPid()), PPID: int(p.GetPpid()), Command: clip(p.GetCommand()), UID: int(p.GetUid()),
			State: clip(p.GetState()), Threads: int(p.GetThreads()), ResidentBytes: p.GetResidentBytes(),
			Sockets: int(p.GetSockets()), Migration: clip(p.GetMigration()), Host: host,
		})
	}
	return out
}

func phases(m map[string]float64) map[string]float64 {
	if len(m) > maxPhases {
		return nil
	}
	out := maps.Clone(m)
	for name, ms := range out {
		out[name] = Finite(ms)
	}
	maps.DeleteFunc(out, func(name string, _ float64) bool { return len(name) > maxText })
	return out
}

// Finite is what an agent has measured, or 0 if it is no number: JSON has no
// word for that, and no report could be written any more.
func Finite(f float64) float64 {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return 0
	}
	return f
}

func rounds(list []*migratev1.Round) []migrate.Round {
	var out []migrate.Round
	for _, r := range first(list, maxRounds) {
		out = append(out, migrate.Round{
			N: int(r.GetN()), Pages: r.GetPages(), Bytes: r.GetBytes(), WireBytes: r.GetWireBytes(), MS: Finite(r.GetMs()), Frozen: r.GetFrozen(),
		})
	}
	return out
}

func measured(p *migratev1.Promised) migrate.Measured {
	return migrate.Measured{
		Rounds: rounds(p.GetRounds()), PhasesMS: phases(p.GetPhasesMs()), DowntimeMS: Finite(p.GetDowntimeMs()),
		Bytes: p.GetBytes(), WireBytes: p.GetWireBytes(),
	}
}

func progress(p *migratev1.Progress) *migrate.Progress {
	return &migrate.Progress{
		Round: int(p.GetRound()), RoundPages: p.GetRoundPages(), RoundSent: p.GetRoundSent(),
		Bytes: p.GetBytes(), WireBytes: p.GetWireBytes(), RateBytes: Finite(p.GetRateBytes()),
		DirtyRateBytes: Finite(p.GetDirtyRateBytes()), EstimateMS: Finite(p.GetEstimateMs()),
	}
}

func optionsToProto(o migrate.Options) *migratev1.Options {
	var with []string
	for _, a := range o.WithAddresses {
		with = append(with, a.String())
	}
	return &migratev1.Options{
		MaxDowntime: durationpb.New(o.MaxDowntime), BandwidthBytes: o.BandwidthBytes, Compress: string(o.Compress),
		MaxRounds: uint32(max(o.MaxRounds, 0)), Strict: o.Strict, Rehearse: o.Rehearse, Verify: o.Verify,
		AllowDegraded: o.AllowDegraded, WithAddresses: with,
	}
}

func decisionToProto(d migrate.Decision) migratev1.Decision {
	switch d {
	case migrate.DecisionCommit:
		return migratev1.Decision_DECISION_COMMIT
	case migrate.DecisionAbort:
		return migratev1.Decision_DECISION_ABORT
	}
	return migratev1.Decision_DECISION_UNSPECIFIED
}
