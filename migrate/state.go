package migrate

// State is the state of a migration as users see it. The words are part of
// the command line's contract and never change.
type State string

// The states, in the order in which a migration passes through them. FROZEN
// and PREPARED are reports that the leader holds in memory; all others are in
// the replicated log.
const (
	StatePending   State = "PENDING"   // recorded, nothing done yet
	StatePreflight State = "PREFLIGHT" // both sides are looking for blockers
	StatePrecopy   State = "PRECOPY"   // memory is copied while the process runs
	StateFrozen    State = "FROZEN"    // the source stands still, the last pages cross
	StatePrepared  State = "PREPARED"  // the destination could run it
	StateCommitted State = "COMMITTED" // the log says: the destination runs it
	StateDone      State = "DONE"      // it runs at the destination, the source's copy is gone
	StateAborted   State = "ABORTED"   // it runs at the source
	StateRefused   State = "REFUSED"   // preflight found blockers, nothing was touched
	StateRehearsed State = "REHEARSED" // a rehearsal reached PREPARED; it runs at the source
	StateReverted  State = "REVERTED"  // committed, but the destination never ran it; it runs at the source
)

// Final reports whether a migration in state s has ended.
func (s State) Final() bool {
	switch s {
	case StateDone, StateAborted, StateRefused, StateRehearsed, StateReverted:
		return true
	}
	return false
}

// Valid reports whether s is one of the constants above.
func (s State) Valid() bool {
	switch s {
	case StatePending, StatePreflight, StatePrecopy, StateFrozen, StatePrepared, StateCommitted:
		return true
	}
	return s.Final()
}
