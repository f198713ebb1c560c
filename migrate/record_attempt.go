package migrate

// An Attempt is what the leader knows of a running migration from reports
// alone: it is in memory, not in the log, and a new leader begins with an empty
// one. What matters of it later is folded into the decision's entry.
type Attempt struct {
	Epoch     uint64
	Preflight bool // both sides are being looked at
	Frozen    bool
	Prepared  bool
	Promised  bool
	Ended     *Ended
	Gone      string // why the destination's half is gone
	Progress  *Progress
	Measured  Measured // as far as heard
	// Waiting says for people what the leader waits for, if it has to wait.
	Waiting string
}

// Ended is the source's word that it gave up before it promised anything.
type Ended struct {
	Rehearsed bool // it reached PREPARED, as a rehearsal should
	Reason    string
	Blockers  []Finding
	Outcome   Outcome // of the source: OutcomeResumed, OutcomeKilled or OutcomeEnded
	Lost      string
}

// Proposal is the decision that the attempt calls for, if it calls for one.
func (a Attempt) Proposal(r Record) (Decided, bool) {
	switch {
	case a.Ended != nil:
		d := a.Abort(a.Ended.Reason)
		d.Blockers = a.Ended.Blockers
		d.Rehearsed = a.Ended.Rehearsed
		d.Source, d.Lost = a.Ended.Outcome, a.Ended.Lost
		return d, true
	case a.Gone != "":
		return a.Abort(a.Gone), true
	case !a.Prepared || !a.Promised:
		return Decided{}, false
	case r.Options.Rehearse:
		// The source should not promise in a rehearsal; it may not run on by
		// itself now, but it has nothing to fear either.
		d := a.Abort("")
		d.Rehearsed = true
		return d, true
	}
	return Decided{Decision: DecisionCommit, Prepared: a.Epoch, Promised: a.Epoch, Measured: a.Measured}, true
}

// Abort proposes to give up, with what has been measured so far.
func (a Attempt) Abort(reason string) Decided {
	return Decided{Decision: DecisionAbort, Reason: reason, Measured: a.Measured}
}

// Overlay adds to a report what only the leader knows. The log's word on state
// and reason is never replaced, only made finer.
func (a Attempt) Overlay(r Report) Report {
	switch {
	case r.State == StatePending && a.Preflight:
		r.State = StatePreflight
	case r.State == StatePrecopy && a.Prepared:
		r.State = StatePrepared
	case r.State == StatePrecopy && (a.Frozen || a.Promised):
		r.State = StateFrozen
	}
	if r.Reason == "" && !r.Settled {
		r.Reason = a.Waiting
	}
	if r.State.Final() {
		return r
	}
	r.Progress = a.Progress
	if len(r.Rounds) == 0 {
		r.Rounds = orEmpty(a.Measured.Rounds)
		r.Bytes, r.WireBytes = a.Measured.Bytes, a.Measured.WireBytes
	}
	return r
}
