package source

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate/resource"
	"github.com/pagurus-project/pagurus/migrate/wire"
	"github.com/pagurus-project/pagurus/parasite"
)

// forwardTimeout is how long the sending of late signals may take.
const forwardTimeout = 5 * time.Second

// Dispose ends the frozen copy after the destination has reported that the
// process runs there. Signals that reached the copy after its image was taken
// are forwarded first. The copy is killed where it stands and runs no
// instruction any more.
func (m *Migration) Dispose(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.over {
		return nil
	}
	if !m.recovered && !m.promised {
		return errors.New("disposing of a process that was not promised to the destination")
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	m.forwardHeld()
	if err := m.forwardStaying(ctx); err != nil { // to be tried again
		return fmt.Errorf("disposing of the source's copy: %w", err)
	}
	var errs []error
	if m.sender != nil && !m.killing {
		errs = append(errs, m.forwardSignals(ctx))
	}
	if !m.killing && len(m.processes) == len(m.plan.Processes) && !slices.ContainsFunc(m.processes, (*process).exited) {
		// As long as the sockets are open no other file is taken for theirs.
		errs = append(errs, resource.RemoveSocketFiles(m.plan.SocketFiles))
	}
	m.killing = true
	for _, p := range m.processes {
		if err := p.kill(); err != nil {
			return errors.Join(append(errs, fmt.Errorf("killing process %d: %w", p.pid, err))...)
		}
	}
	for _, p := range m.processes {
		errs = append(errs, p.release(), p.awaitExit(ctx))
	}
	if m.forwarding != nil { // the address may come back
		errs = append(errs, m.forwarding.LetOut())
		m.forwarding = nil
	}
	if err := m.endHold(); err != nil { // to be tried again
		return fmt.Errorf("disposing of the source's copy: %w", errors.Join(append(errs, err)...))
	}
	errs = append(errs, m.thaw(), m.leave(ctx))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("disposing of the source's copy: %w", err)
	}
	return nil
}

// forwardSignals sends the signals that have arrived since the image was taken
// and ends the stream.
func (m *Migration) forwardSignals(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, forwardTimeout)
	defer cancel()
	late, err := m.lateSignals()
	if err != nil {
		return err
	}
	if !late.Empty() {
		payload, err := late.Encode()
		if err != nil {
			return fmt.Errorf("encoding late signals: %w", err)
		}
		if err := m.sender.Message(ctx, wire.KindSignals, payload); err != nil {
			return fmt.Errorf("forwarding late signals: %w", err)
		}
	}
	return m.sender.Close(ctx)
}

// lateSignals are those that are pending now and not in the image.
func (m *Migration) lateSignals() (*wire.Signals, error) {
	late := &wire.Signals{}
	for i, p := range m.processes {
		if p.exited() {
			continue // killed by somebody; it takes its signals along
		}
		known := &m.image.Processes[i]
		shared, err := p.leader().PendingSignals(true)
		if err != nil {
			return nil, err
		}
		signals := wire.ProcessSignals{PID: p.pid, Shared: lateOf(shared, known.Pending)}
		for j := range known.Threads {
			t := &known.Threads[j]
			own, err := p.stopped.Thread(t.TID).PendingSignals(false)
			if err != nil {
				return nil, err
			}
			if l := lateOf(own, t.Pending); len(l) > 0 {
				signals.Threads = append(signals.Threads, wire.ThreadSignals{TID: t.TID, Pending: l})
			}
		}
		late.Processes = append(late.Processes, signals)
	}
	return late, nil
}

// lateOf are the signals of now that were not known, each as often as it is
// pending more often than before.
func lateOf(now []parasite.SigInfo, known [][]byte) [][]byte {
	seen := make(map[parasite.SigInfo]int)
	for _, info := range known {
		var s parasite.SigInfo
		copy(s[:], info)
		seen[s]++
	}
	var late [][]byte
	for _, s := range now {
		switch {
		case seen[s] > 0:
			seen[s]--
		case !fromTimer(&s):
			late = append(late, slices.Clone(s[:]))
		}
	}
	return late
}

// fromTimer reports whether one of the process's own timers has sent a signal:
// these have moved with it, and run there too (sigaction(2), si_code).
func fromTimer(s *parasite.SigInfo) bool {
	const siKernel, siTimer = 0x80, -2
	switch unix.Signal(s.Signal()) {
	case unix.SIGALRM, unix.SIGVTALRM, unix.SIGPROF:
		return s.Code() == siTimer || s.Code() == siKernel
	}
	return s.Code() == siTimer
}
