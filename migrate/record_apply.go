package migrate

import (
	"errors"
	"fmt"
	"maps"
	"slices"
)

// ErrOutOfPlace says that an event does not fit the state of the record. A
// repeated event never does this: it changes nothing.
var ErrOutOfPlace = errors.New("event out of place")

// Apply returns the record after e and what is outstanding then. With an error
// the record is the one before. It reads no clock, does no I/O and never fails
// otherwise than by [ErrOutOfPlace].
func (r Record) Apply(e Event) (Record, []Effect, error) {
	if e == nil {
		return r, r.Effects(), fmt.Errorf("%w: no event", ErrOutOfPlace)
	}
	next, err := e.apply(r)
	if err != nil {
		return r, r.Effects(), err
	}
	return next, next.Effects(), nil
}

func outOfPlace(r Record, e Event) error {
	state := r.State
	if state == "" {
		state = "no state"
	}
	return fmt.Errorf("%w: %T in %s", ErrOutOfPlace, e, state)
}

func (e Created) apply(r Record) (Record, error) {
	if r.ID != "" && r.ID == e.ID && r.Key == e.Key && r.Created.Equal(e.At) {
		return r, nil
	}
	// Otherwise two migrations were given the same ID.
	if r.ID != "" || e.ID == "" {
		return r, outOfPlace(r, e)
	}
	r = Record{
		ID: e.ID, Key: e.Key, PID: e.PID, From: e.From, To: e.To, Options: e.Options,
		State: StatePending, Created: e.At,
	}
	if len(e.Blockers) > 0 {
		r.State = StateRefused
		r.Blockers = slices.Clone(e.Blockers)
		r.Source, r.Target = OutcomeUntouched, OutcomeUntouched
		r.Ended = e.At
	}
	return r, nil
}

func (e PreflightDone) apply(r Record) (Record, error) {
	if r.ID == "" {
		return r, outOfPlace(r, e)
	}
	// The other states: cancelled meanwhile, or a repetition.
	if r.State != StatePending {
		return r, nil
	}
	if len(e.Blockers) == 0 && e.Epoch == 0 {
		return r, fmt.Errorf("%w: an attempt without an epoch", ErrOutOfPlace)
	}
	r.Command = e.Command
	r.Blockers = slices.Clone(e.Blockers)
	r.Warnings = slices.Clone(e.Warnings)
	r.Measured.PhasesMS = maps.Clone(e.PhasesMS)
	if len(e.Blockers) == 0 {
		r.Addresses = slices.Clone(e.Addresses)
		r.State = StatePrecopy
		r.Epoch = e.Epoch
		return r, nil
	}
	r.State = StateRefused
	r.Source = OutcomeUntouched
	if !e.Reserved {
		r.Target = OutcomeUntouched
	}
	r.Ended = e.At
	return r, nil
}

func (e Decided) apply(r Record) (Record, error) {
	switch {
	case r.ID == "":
		return r, outOfPlace(r, e)
	case r.Decision() != DecisionNone:
		return r, nil // the first one stands
	case e.Decision == DecisionCommit:
		return e.commit(r)
	case e.Decision == DecisionAbort:
		return e.abort(r), nil
	}
	return r, fmt.Errorf("%w: decision %q", ErrOutOfPlace, e.Decision)
}

func (e Decided) commit(r Record) (Record, error) {
	switch {
	case r.State != StatePrecopy:
		return r, outOfPlace(r, e)
	case r.Options.Rehearse:
		return r, fmt.Errorf("%w: COMMIT of a rehearsal", ErrOutOfPlace)
	case e.Prepared != r.Epoch || e.Promised != r.Epoch:
		return r, fmt.Errorf("%w: COMMIT of epoch %d with PREPARED of %d and PROMISE of %d",
			ErrOutOfPlace, r.Epoch, e.Prepared, e.Promised)
	}
	r.State = StateCommitted
	r.Measured = r.Measured.with(e.Measured)
	return r, nil
}

func (e Decided) abort(r Record) Record {
	// Before preflight was over the source was only looked at.
	if r.State == StatePending {
		r.Source = OutcomeUntouched
	}
	r.State = StateAborted
	r.Reason = e.Reason
	if e.Rehearsed && r.Options.Rehearse {
		r.State = StateRehearsed
	}
	r.Blockers = joined(r.Blockers, e.Blockers)
	r.Measured = r.Measured.with(e.Measured)
	r.Ended = e.At
	if r.Source == OutcomeOpen && (e.Source == OutcomeResumed || e.Source == OutcomeKilled || e.Source == OutcomeEnded) {
		r = r.settleSource(e.Source, e.Lost)
	}
	return r
}

func (e Running) apply(r Record) (Record, error) {
	if r.Target == OutcomeRunning {
		return r, nil
	}
	if r.State != StateCommitted {
		return r, outOfPlace(r, e)
	}
	r.Target = OutcomeRunning
	r.Measured.DowntimeMS += e.DowntimeMS
	phases := orEmptyMap(r.Measured.PhasesMS)
	for phase, ms := range e.PhasesMS {
		phases[phase] += ms
	}
	r.Measured.PhasesMS = phases
	return r, nil
}

func (e NeverRan) apply(r Record) (Record, error) {
	if r.Target == OutcomeNeverRan || r.Target == OutcomeFenced {
		return r, nil
	}
	if r.State != StateCommitted || r.Target != OutcomeOpen {
		return r, outOfPlace(r, e)
	}
	r.State = StateReverted
	r.Target = OutcomeNeverRan
	r.Reason = e.Reason
	r.Ended = e.At
	return r, nil
}

func (e Fenced) apply(r Record) (Record, error) {
	if r.Target == OutcomeNeverRan || r.Target == OutcomeFenced {
		return r, nil
	}
	if r.State != StateCommitted || r.Target != OutcomeOpen {
		return r, outOfPlace(r, e)
	}
	r.State = StateReverted
	r.Target = OutcomeFenced
	r.Reason = fmt.Sprintf("%s was fenced by %s before it ran the process", r.To, e.By)
	r.Ended = e.At
	return r, nil
}

func (e SourceSettled) apply(r Record) (Record, error) {
	switch {
	case r.ID == "":
		return r, outOfPlace(r, e)
	case r.Source != OutcomeOpen:
		return r, nil
	case r.State == StateCommitted:
		if r.Target != OutcomeRunning || e.Outcome != OutcomeDisposed {
			return r, outOfPlace(r, e)
		}
		r.State = StateDone
		r.Source = OutcomeDisposed
		r.Ended = e.At
		return r, nil
	case !r.State.Final():
		return r, outOfPlace(r, e)
	}
	switch e.Outcome {
	case OutcomeResumed, OutcomeKilled, OutcomeEnded, OutcomeUnknown:
	default:
		return r, fmt.Errorf("%w: source %s in %s", ErrOutOfPlace, e.Outcome, r.State)
	}
	r.Measured = r.Measured.with(Measured{DowntimeMS: e.DowntimeMS, PhasesMS: e.PhasesMS})
	return r.settleSource(e.Outcome, e.Lost), nil
}

func (e TargetSettled) apply(r Record) (Record, error) {
	switch {
	case r.ID == "":
		return r, outOfPlace(r, e)
	case r.Target != OutcomeOpen:
		return r, nil
	case r.Decision() != DecisionAbort:
		return r, outOfPlace(r, e)
	}
	switch e.Outcome {
	case OutcomeReleased, OutcomeNeverRan, OutcomeUnknown:
		r.Target = e.Outcome
		return r, nil
	}
	return r, fmt.Errorf("%w: target %s in %s", ErrOutOfPlace, e.Outcome, r.State)
}

func (e Forgotten) apply(r Record) (Record, error) {
	if !r.Settled() {
		return r, outOfPlace(r, e)
	}
	r.Forgotten = true
	return r, nil
}

// settleSource notes how the source ended without the process having left. A
// copy that was killed while it stood still, or that has lost something, is no
// failure of the migration, but whoever looks for the process has to learn of it.
func (r Record) settleSource(o Outcome, lost string) Record {
	const killed = "killed at the source"
	r.Source = o
	if o == OutcomeKilled {
		lost = killed
	}
	switch {
	case r.Reason == "":
		r.Reason = lost
	case lost != "":
		r.Reason += ", " + lost
	}
	return r
}

// with returns m with what is newer in n: lists and totals replace, phases
// are merged by name. It is for two statements of the same host.
func (m Measured) with(n Measured) Measured {
	if n.Rounds != nil {
		m.Rounds = slices.Clone(n.Rounds)
	}
	if len(n.PhasesMS) > 0 {
		phases := orEmptyMap(m.PhasesMS)
		maps.Copy(phases, n.PhasesMS)
		m.PhasesMS = phases
	}
	if n.DowntimeMS != 0 {
		m.DowntimeMS = n.DowntimeMS
	}
	if n.Bytes != 0 {
		m.Bytes = n.Bytes
	}
	if n.WireBytes != 0 {
		m.WireBytes = n.WireBytes
	}
	return m
}
