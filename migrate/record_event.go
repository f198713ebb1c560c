package migrate

import (
	"net/netip"
	"time"
)

// An Event is one entry of the replicated log about one migration. There is a
// handful of them in a migration's life, whatever the size of the process.
type Event interface {
	// apply returns the record after the event. r is a copy: its plain fields
	// may be set, its slices and maps only be replaced.
	apply(r Record) (Record, error)
}

// Created begins a migration.
type Created struct {
	ID      string
	Key     string
	PID     int
	From    string
	To      string
	Options Options
	// Blockers that were known without looking: the record is REFUSED at once.
	Blockers []Finding
	At       time.Time
}

// PreflightDone says what both sides found. Without blockers the attempt of
// that epoch begins.
type PreflightDone struct {
	Epoch    uint64
	Command  string
	Blockers []Finding
	Warnings []Finding
	PhasesMS map[string]float64
	// Addresses are the service addresses that go along.
	Addresses []netip.Prefix
	// Reserved says that the destination may have made a reservation, so that
	// a refusal has to release it.
	Reserved bool
	At       time.Time
}

// Decided proposes a decision. The first one written stands: all later ones
// change nothing, and whoever proposes reads from the record what holds.
type Decided struct {
	Decision Decision // COMMIT or ABORT
	Reason   string   // of an ABORT, for people
	Blockers []Finding

	// The epochs of the PREPARED and of the PROMISE that the leader holds,
	// zero if it holds none. COMMIT needs both, of the record's own epoch.
	Prepared uint64
	Promised uint64

	// What the source measured, as far as the leader has heard.
	Measured Measured

	// Rehearsed: the rehearsal reached PREPARED, which is all that it should do.
	Rehearsed bool
	// Source is set if the source had ended by itself: OutcomeResumed,
	// OutcomeKilled or OutcomeEnded. It does that only before it has promised.
	Source Outcome
	Lost   string // as in SourceSettled
	At     time.Time
}

// Running is the destination's answer to COMMIT: it runs the process.
type Running struct {
	DowntimeMS float64 // its part
	PhasesMS   map[string]float64
}

// NeverRan is the destination's other answer to COMMIT: it could not resume
// the process, and attests that not one instruction of it has run there.
type NeverRan struct {
	Reason string
	At     time.Time
}

// Fenced says that an operator vouches that the destination cannot run the
// process, not now and not later, for instance because the host is off.
type Fenced struct {
	By string
	At time.Time
}

// SourceSettled says how the source ended: after an ABORT OutcomeResumed,
// OutcomeKilled, OutcomeEnded or OutcomeUnknown, after RUNNING OutcomeDisposed.
type SourceSettled struct {
	Outcome    Outcome
	DowntimeMS float64 // from the first thread stopped to the last one resumed
	PhasesMS   map[string]float64
	Lost       string // what the process does not have any more, though it runs on
	At         time.Time
}

// TargetSettled says how the destination ended after an ABORT:
// OutcomeReleased, OutcomeNeverRan or OutcomeUnknown.
type TargetSettled struct {
	Outcome Outcome
}

// Forgotten says that the sides dropped what they remembered.
type Forgotten struct{}

var (
	_ Event = Created{}
	_ Event = PreflightDone{}
	_ Event = Decided{}
	_ Event = Running{}
	_ Event = NeverRan{}
	_ Event = Fenced{}
	_ Event = SourceSettled{}
	_ Event = TargetSettled{}
	_ Event = Forgotten{}
)
