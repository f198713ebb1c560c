package source

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/migrate/resource"
	"github.com/pagurus-project/pagurus/migrate/wire"
	"github.com/pagurus-project/pagurus/pageserver"
	"github.com/pagurus-project/pagurus/parasite"
)

// How long the destination may take over the last round and everything after
// it: some time in any case, and what lies several times above the time that
// its pages should need.
const (
	silenceTimeout = 10 * time.Second
	silenceFactor  = 8
	// slowestBytes is the speed, in bytes a second, that reading all memory once
	// more for Verify has in any case.
	slowestBytes = 64 << 20
)

// freeze makes the last round, numbered n, and waits until the destination is
// prepared:
//
//  1. connections are settled; the plan says so; the group is frozen, all threads are seized, the group
//     is thawed: held by ptrace, threads can make remote calls;  (stop)
//  2. the image is taken;                                        (dump)
//  3. file locks are released, the group is frozen for good:
//     from here on our death leaves the process frozen; connections are read;
//  4. the last changes are found;                                (stop)
//  5. layout, pages and state are sent;                          (transfer)
//  6. the destination says that it is prepared.
func (m *Migration) freeze(ctx context.Context, heard *replies, events Events, n uint32) error {
	defer keepQuiet()()
	if err := m.settleConnections(ctx); err != nil {
		return err
	}
	if err := m.planFreeze(); err != nil {
		return err
	}
	err := m.dump.NoteIDs(ctx, m.pids())
	if err == nil {
		err = m.dump.NoteWaits(m.pids())
	}
	if err != nil {
		return errors.Join(m.checkTree(), err)
	}
	m.frozen = time.Now()
	ctx, cancel := m.withinDowntime(ctx)
	defer cancel()
	err = m.standStill(ctx, heard, events, n)
	if cause := context.Cause(ctx); errors.Is(cause, ErrDowntime) {
		return cause // whatever came of it
	}
	return err
}

// decisionTakes is about what comes after the freeze until the process runs: the
// promise, the decision in the log, the order to resume.
const decisionTakes = 10 * time.Millisecond

// withinDowntime ends a strict migration's context when the process has stood still
// for so long that it cannot run again in the time that is allowed. It has not been
// promised yet by then.
func (m *Migration) withinDowntime(ctx context.Context) (context.Context, context.CancelFunc) {
	if !m.config.Options.Strict {
		return ctx, func() {}
	}
	allowed := m.config.Options.MaxDowntime
	stands := max(allowed-decisionTakes, allowed/2)
	return context.WithDeadlineCause(ctx, m.frozen.Add(stands), fmt.Errorf(
		"%w: it has stood still for %v, has to be decided on yet, and %v are allowed", ErrDowntime, stands, allowed))
}

// standStill is the freeze from the first thread stopped on.
func (m *Migration) standStill(ctx context.Context, heard *replies, events Events, n uint32) error {
	if err := m.stop(ctx); err != nil {
		return errors.Join(m.checkTree(), err)
	}
	m.still = true
	events.Frozen()
	if err := m.beginHold(ctx); err != nil {
		return err
	}
	if err := m.checkTree(); err != nil {
		return err
	}
	stopped := time.Now()
	if err := m.takeImage(ctx); err != nil {
		return err
	}
	dumped := time.Now()
	s, err := m.surveyFrozen(ctx, n)
	if err != nil {
		return err
	}
	found := time.Now()
	m.spent(migrate.PhaseStop, stopped.Sub(m.frozen)+found.Sub(dumped))
	m.spent(migrate.PhaseDump, dumped.Sub(stopped))

	patient, cancel := m.patient(ctx, s)
	defer cancel()
	stats, err := m.send(patient, s, n, true)
	if err != nil {
		return err
	}
	m.gauges.mu.Lock()
	m.noteRoundLocked(stats, time.Since(found), true)
	m.gauges.mu.Unlock()
	if err := m.sendState(patient); err != nil {
		return err
	}
	sent := time.Now()
	reply, err := heard.await(patient, wire.Prepared, 0, wire.Differs)
	for ; err == nil && reply.Kind == wire.Differs; n++ {
		patient, cancel := m.patient(ctx, s)
		if err = m.sendAgain(patient, n+1, reply.Runs); err == nil {
			sent = time.Now()
			reply, err = heard.await(patient, wire.Prepared, 0, wire.Differs)
		}
		cancel()
	}
	if err == nil {
		err = m.planForward(reply.Addresses)
	}
	if err != nil {
		return err
	}
	// What was in the buffers of the network still had to cross when we had sent it
	// all: when the state had arrived is reckoned back from what the destination says
	// it took since, so that no two clocks are compared.
	arrived := time.Now().Add(-time.Duration(max(reply.Took, 0)) - m.trip/2)
	if arrived.Before(sent) {
		arrived = sent
	}
	m.spent(migrate.PhaseTransfer, arrived.Sub(found))
	m.gauges.mu.Lock()
	m.gauges.measured.Downtime = arrived.Sub(m.frozen)
	m.gauges.mu.Unlock()
	if !m.verifies() {
		m.host.learn(time.Since(m.frozen) - stats.Duration)
	}
	return nil
}

// planFreeze notes that the process is about to stand still.
func (m *Migration) planFreeze() error {
	var err error
	if m.plan.FrozenAt, err = bootClock(); err != nil {
		return err
	}
	return m.save()
}

// patient ends when the rest takes too long.
func (m *Migration) patient(ctx context.Context, s *survey) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, m.patience(s), errors.New("the destination takes too long over the last round"))
}

// patience is how long the rest may take.
func (m *Migration) patience(s *survey) time.Duration {
	m.gauges.mu.Lock()
	speed := m.gauges.pace.speed
	m.gauges.mu.Unlock()
	allowed := silenceTimeout
	if speed > 0 {
		allowed += silenceFactor * time.Duration(float64(s.pages*image.PageSize)/speed*float64(time.Second))
	}
	if m.verifies() {
		var all uint64
		for _, p := range m.processes {
			all += p.sent.Len() * image.PageSize
		}
		for _, o := range m.objects {
			all += o.sent.bytes()
		}
		allowed += time.Duration(all/slowestBytes) * time.Second
	}
	return allowed
}

// takeImage reads everything but the memory, then makes sure that the process
// stands still whatever becomes of us.
func (m *Migration) takeImage(ctx context.Context) error {
	targets := m.targets()
	if err := m.dump.CheckCode(targets); err != nil {
		return errors.Join(m.blocked(), err)
	}
	if err := m.mapScratch(ctx); err != nil {
		return err
	}
	var err error
	if m.image, err = m.dump.Dump(ctx, targets); err != nil {
		return fmt.Errorf("reading the state of the process: %w", err)
	}
	m.withoutScratch(m.image)
	m.image.Addresses = m.config.Addresses
	if err := m.blocked(); err != nil {
		return err
	}
	if err := m.beginStaying(); err != nil {
		return err
	}
	if err := m.mustBeSettled(); err != nil {
		return err
	}
	if resource.HasLocks(m.image) {
		m.plan.Locks = locksOf(m.image)
		if err := m.mapScratch(ctx); err != nil {
			return err
		}
		if err := resource.ReleaseLocks(ctx, m.image, targets); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, standTimeout)
	defer cancel()
	if err := m.group.Freeze(ctx); err != nil {
		return err
	}
	return m.dumpConnections(ctx)
}

func (m *Migration) targets() []*parasite.Process {
	all := make([]*parasite.Process, len(m.processes))
	for i, p := range m.processes {
		all[i] = p.stopped
	}
	return all
}

// surveyFrozen looks for the last time. The layout is what the image says.
func (m *Migration) surveyFrozen(ctx context.Context, n uint32) (*survey, error) {
	layout := layoutOf(m.image, n)
	at := time.Now()
	if err := m.collect(ctx, layout, true); err != nil {
		return nil, err
	}
	s, err := m.survey(ctx, layout, at, true)
	if err != nil {
		return nil, err
	}
	for i, p := range m.processes {
		var mapped []image.AddressRange
		for _, mapping := range layout.Processes[i].Mappings {
			mapped = append(mapped, mapping.AddressRange)
		}
		m.image.Processes[i].Memory.Guards = p.guards.within(union(mapped))
	}
	return s, nil
}

// layoutOf is the layout that belongs to an image. What is mapped comes first
// among its files.
func layoutOf(m *image.Image, n uint32) *image.Layout {
	l := &image.Layout{Round: int(n), Objects: m.Objects}
	files := 0
	for i := range m.Processes {
		p := &m.Processes[i]
		state := image.ProcessState{PID: p.PID, Space: p.Memory.Space}
		state.Mappings = append(state.Mappings, p.Memory.Mappings...)
		for j := range p.Threads {
			state.Threads = append(state.Threads, p.Threads[j].TID)
		}
		for j := range state.Mappings {
			files = max(files, state.Mappings[j].File+1)
		}
		l.Processes = append(l.Processes, state)
	}
	l.Files = m.Files[:files]
	return l
}

func (m *Migration) sendState(ctx context.Context) error {
	encoded, err := m.image.Encode()
	if err != nil {
		return fmt.Errorf("encoding the image: %w", err)
	}
	state := wire.State{Image: encoded}
	if m.verifies() {
		if m.sums == nil {
			if m.sums, err = m.verify(ctx); err != nil {
				return fmt.Errorf("summing up the memory: %w", err)
			}
		}
		state.Verify = m.sums
	}
	payload, err := state.Encode()
	if err != nil {
		return fmt.Errorf("encoding the state: %w", err)
	}
	return m.sender.Message(ctx, wire.KindState, payload)
}

// maxRepairs bounds how often pages are sent again: a reply names no more than so
// many, and the process waits.
const maxRepairs = 20

// sendAgain sends pages that the destination does not have as they are, as a round
// numbered n, and the state.
func (m *Migration) sendAgain(ctx context.Context, n uint32, runs []wire.Run) error {
	switch m.repairs++; {
	case !m.host.losesWrites || len(runs) == 0:
		return errors.New("the destination asks for pages once more without a reason")
	case m.repairs > maxRepairs:
		return fmt.Errorf("the destination still lacks pages that this kernel's soft-dirty bits have missed, after %d tries", maxRepairs)
	}
	again := make([]pageserver.Run, len(runs))
	for i, r := range runs {
		again[i] = pageserver.Run{Space: pageserver.SpaceID(r.Space), Range: pageserver.Range{First: pageserver.PageNo(r.First), Pages: r.Pages}}
	}
	began := time.Now()
	none := slices.Values([]pageserver.Run(nil))
	stats, err := m.sender.Round(ctx, pageserver.RoundSpec{N: n, Runs: slices.Values(again), Drops: none, Urgent: true})
	if err != nil {
		return err
	}
	m.gauges.mu.Lock()
	m.noteRoundLocked(stats, time.Since(began), true)
	m.gauges.mu.Unlock()
	return m.sendState(ctx)
}

// unfreeze lets the process go on after a freeze that is to be tried again.
// Nothing but the dump has been tried.
func (m *Migration) unfreeze(ctx context.Context) error {
	m.frozen, m.still, m.sums = time.Time{}, false, nil
	m.plan = m.plan.settled()
	if err := m.save(); err != nil {
		return err
	}
	m.letOut()
	err := m.release()
	m.deliverHeld(ctx)
	return err
}
