package migrate

import (
	"maps"
	"net/netip"
	"slices"
	"time"
)

// A Record is what the replicated log holds of one migration. It changes by
// [Record.Apply] alone, which is a pure function: every coordinator that
// applies the same events holds the same record, and a new leader carries on
// from it with nothing else in hand.
//
//	            PreflightDone               Decided               Running, then
//	 Created    no blockers        COMMIT of this epoch           SourceSettled
//	─────────► PENDING ─────────► PRECOPY ─────────────► COMMITTED ─────────► DONE
//	   │          │  │                │                      │
//	   │ busy     │  └────────────────┤ Decided ABORT        │ NeverRan, Fenced
//	   ▼          ▼ blockers          ▼                      ▼ (only before Running)
//	REFUSED    REFUSED      ABORTED or REHEARSED         REVERTED
//
// The first decision stands. FROZEN, PREPARED and the promise are not in the
// log: see [Attempt].
//
// A Record is a value. Its slices and maps are never written to once they are
// in it, so that copies may be read while newer ones are made.
type Record struct {
	ID      string
	Key     string // idempotency key of the request, may be empty
	PID     int
	From    string
	To      string
	Options Options

	State    State
	Epoch    uint64 // of the attempt that preflight allowed; zero before
	Command  string
	Reason   string
	Blockers []Finding
	Warnings []Finding
	// Addresses are the service addresses that go along: as long as the record is
	// not settled they are neither removed nor part of another migration.
	Addresses []netip.Prefix

	// How each side ended. A side that is OutcomeOpen has something to do or
	// to undo, or has not been heard to have done it.
	Source    Outcome
	Target    Outcome
	Forgotten bool // both sides dropped what they remembered

	Measured Measured
	Created  time.Time
	Ended    time.Time // when State became final
}

// Measured is what the hosts measured of a migration.
type Measured struct {
	Rounds     []Round
	PhasesMS   map[string]float64
	DowntimeMS float64
	Bytes      uint64
	WireBytes  uint64
}

// A Decision is the word of the log on who runs the process.
type Decision string

// The decisions.
const (
	DecisionNone   Decision = ""
	DecisionCommit Decision = "COMMIT" // the destination runs it
	DecisionAbort  Decision = "ABORT"  // the source runs it
)

// An Outcome is how one side of a migration ended.
type Outcome string

// The outcomes.
const (
	OutcomeOpen      Outcome = ""
	OutcomeUntouched Outcome = "untouched" // nothing was ever ordered there
	OutcomeUnknown   Outcome = "unknown"   // its agent knows nothing of it: nothing is left there
	OutcomeResumed   Outcome = "resumed"   // source: it runs as before
	OutcomeKilled    Outcome = "killed"    // source: the process was killed while frozen
	OutcomeEnded     Outcome = "ended"     // source: the process has ended while it ran
	OutcomeDisposed  Outcome = "disposed"  // source: the frozen copy was ended
	OutcomeRunning   Outcome = "running"   // destination: it runs
	OutcomeReleased  Outcome = "released"  // destination: the shell was removed
	OutcomeNeverRan  Outcome = "never-ran" // destination: attested after COMMIT
	OutcomeFenced    Outcome = "fenced"    // destination: an operator vouches that it cannot run there
)

// Decision is what the log says now. It changes once, except that a COMMIT
// turns into an ABORT when the record is REVERTED.
func (r Record) Decision() Decision {
	switch {
	case r.State == StateCommitted, r.State == StateDone:
		return DecisionCommit
	case r.State.Final():
		return DecisionAbort
	}
	return DecisionNone
}

// Settled reports whether nothing is left to do or undo on either side.
func (r Record) Settled() bool {
	return r.State.Final() && r.Source != OutcomeOpen && r.Target != OutcomeOpen
}

// Holds reports whether the migration still has its hands on the process of
// that PID on that host: no other migration may begin with it.
func (r Record) Holds(host string, pid int) bool {
	return r.Source == OutcomeOpen && host == r.From && pid == r.PID
}

// HoldsAddress reports whether a service address is part of the migration.
func (r Record) HoldsAddress(a netip.Addr) bool {
	return !r.Settled() && slices.ContainsFunc(r.Addresses, func(p netip.Prefix) bool { return p.Addr() == a })
}

// Report is the record as users see it. What the log does not hold, the phase
// within a running attempt and its progress, [Attempt.Overlay] adds on the
// leader.
func (r Record) Report() Report {
	report := Report{
		ID: r.ID, PID: r.PID, Command: r.Command, From: r.From, To: r.To,
		State: r.State, Settled: r.Settled(), Reason: r.Reason, Ended: r.Source == OutcomeKilled || r.Source == OutcomeEnded,
		Blockers:   orEmpty(r.Blockers),
		Warnings:   orEmpty(r.Warnings),
		Addresses:  orEmpty(r.Addresses),
		Rounds:     orEmpty(r.Measured.Rounds),
		DowntimeMS: r.Measured.DowntimeMS,
		Bytes:      r.Measured.Bytes,
		WireBytes:  r.Measured.WireBytes,
		PhasesMS:   orEmptyMap(r.Measured.PhasesMS),
		Created:    r.Created,
		Options:    r.Options,
	}
	if !r.Ended.IsZero() {
		// The two times may be of two leaders' clocks.
		report.TotalMS = max(0, Milliseconds(r.Ended.Sub(r.Created)))
	}
	return report
}

// Milliseconds is d as reports carry it.
func Milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// orEmpty copies a list for a document in which no list is null.
func orEmpty[T any](list []T) []T { return append(make([]T, 0, len(list)), list...) }

func orEmptyMap(m map[string]float64) map[string]float64 {
	if m == nil {
		return map[string]float64{}
	}
	return maps.Clone(m)
}

// joined returns a followed by b in memory that neither shares.
func joined[T any](a, b []T) []T { return slices.Concat(a, b) }

// EffectKind names what is to be done about a record.
type EffectKind string

// The kinds of effects, each with the order to an agent that it stands for.
const (
	EffectPreflight EffectKind = "preflight" // Inspect the source, Reserve the destination
	EffectStart     EffectKind = "start"     // start the source, or ask it whether it has begun
	EffectDecide    EffectKind = "decide"    // tell the side what Decision says
	EffectDispose   EffectKind = "dispose"   // the source's frozen copy may go
	EffectForget    EffectKind = "forget"    // the side may drop what it remembers
)

// A Side is one of the two hosts of a migration.
type Side string

// The sides.
const (
	SideSource Side = "source"
	SideTarget Side = "target"
)

// Host is the name of the host on that side.
func (r Record) Host(s Side) string {
	if s == SideSource {
		return r.From
	}
	return r.To
}

// An Effect is something outstanding.
type Effect struct {
	Kind EffectKind
	Side Side // empty for preflight, which concerns both
}

// Effects lists what is outstanding in this state. It is level-triggered: it
// depends on the record alone, so a leader may do the same twice, and a new
// one needs to know nothing of what the last one had begun.
func (r Record) Effects() []Effect {
	switch {
	case r.State == StatePending:
		return []Effect{{Kind: EffectPreflight}}
	case r.State == StatePrecopy:
		return []Effect{{EffectStart, SideSource}}
	case r.State == StateCommitted && r.Target == OutcomeOpen:
		return []Effect{{EffectDecide, SideTarget}}
	case r.State == StateCommitted:
		return []Effect{{EffectDispose, SideSource}}
	case !r.State.Final() || r.Forgotten:
		return nil
	case r.Settled():
		return r.sides(EffectForget, func(o Outcome) bool {
			return o != OutcomeUntouched && o != OutcomeUnknown && o != OutcomeFenced
		})
	}
	return r.sides(EffectDecide, func(o Outcome) bool { return o == OutcomeOpen })
}

func (r Record) sides(kind EffectKind, wanted func(Outcome) bool) []Effect {
	var effects []Effect
	if wanted(r.Source) {
		effects = append(effects, Effect{kind, SideSource})
	}
	if wanted(r.Target) {
		effects = append(effects, Effect{kind, SideTarget})
	}
	return effects
}
