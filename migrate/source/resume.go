package source

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/migrate/freezer"
	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/migrate/procfs"
	"github.com/pagurus-project/pagurus/migrate/resource"
)

const (
	// undoTimeout is how long undoing may take, whatever the caller's context says.
	undoTimeout = 30 * time.Second
	// The destination may hold the locks until it has heard that its shell is
	// not needed. It is asked again so often, for so long.
	lockEvery = 5 * time.Millisecond
	lockFor   = 3 * time.Second
	// A thread that is found in the middle of a remote call gets so much time,
	// and if that is not sure, so often.
	inCallFor    = 2 * time.Millisecond
	perhapsTries = 25
)

// Resumed is how the process goes on at the source.
type Resumed struct {
	// KilledAtSource says that it does not: somebody killed it while it was frozen.
	// Ended says that it had ended by then.
	KilledAtSource bool
	Ended          bool
	// Lost is what the process does not have any more, for people; empty if it
	// is as before. File locks are free while it stands still, and another
	// process may take one.
	Lost string
	// Downtime is from the first thread stopped to the last one resumed; zero
	// if the process was not frozen.
	Downtime time.Duration
	PhasesMS map[string]float64
}

// Resume undoes everything, in whatever state the migration is, and lets the
// process go on as before; it also closes the connection to the destination.
// Called again it returns the same, and after an error it goes on with what is
// left to undo. If the process itself cannot be mended, it stands still for a
// while in the hope of another try, and then runs all the same.
func (m *Migration) Resume(ctx context.Context) (Resumed, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.over {
		return m.resumed, nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	// The destination lets go of what it has, file locks too. Closing can take
	// seconds if it does not listen (TLS says goodbye), and the process waits.
	var closing sync.WaitGroup
	if m.conn != nil {
		closing.Go(func() { _ = m.conn.Close() })
	}
	defer closing.Wait()
	m.resuming = true
	frozenAt := m.plan.FrozenAt
	start := time.Now()
	if err := m.catch(ctx); err != nil {
		return m.resumed, fmt.Errorf("resuming the process: %w", err)
	}
	if !m.recovered { // catch has done that otherwise, if it was still to be done
		m.putWaitingBack()
		m.resumeConnections()
	}
	if err := m.thaw(); err != nil {
		return m.resumed, fmt.Errorf("resuming the process: %w", err)
	}
	var errs []error
	taken, lockErr := m.retakeLocks(ctx)
	// The plan must not say any more what would harm the process once it runs.
	m.plan = m.plan.settled()
	errs = append(errs, m.save())
	for _, p := range m.processes {
		errs = append(errs, p.release())
	}
	// That a process was killed shows when its tracer has let go of all threads.
	if killed := m.killed(); !killed {
		errs = append(errs, lockErr)
		m.lose("file locks lost: ", taken...)
		if lockErr != nil {
			m.lose("", lockErr)
		}
	} else if m.still || m.recovered && frozenAt != 0 {
		m.resumed.KilledAtSource = true
	} else if !m.resumed.KilledAtSource { // by what another try knew
		m.resumed.Ended = true
	}
	m.still = false
	if frozenAt != 0 {
		var err error
		m.resumed.Downtime, err = m.stood(frozenAt)
		errs = append(errs, err)
		m.spent(migrate.PhaseResume, time.Since(start))
		m.resumed.PhasesMS = m.Measured().PhasesMS
	}
	m.deliverHeld(ctx)
	if err := m.endHold(); err != nil { // to be tried again
		return m.resumed, fmt.Errorf("resuming the process: %w", errors.Join(append(errs, err)...))
	}
	errs = append(errs, m.leave(ctx))
	if err := errors.Join(errs...); err != nil {
		return m.resumed, fmt.Errorf("resuming the process: %w", err)
	}
	return m.resumed, nil
}

// thaw thaws the group, if it still exists.
func (m *Migration) thaw() error {
	if !m.grouped {
		return nil
	}
	if frozen, err := m.group.Frozen(); err != nil || !frozen {
		return err
	}
	return m.group.Thaw()
}

// stood is how long the process has stood still.
func (m *Migration) stood(frozenAt int64) (time.Duration, error) {
	if !m.frozen.IsZero() {
		return time.Since(m.frozen), nil
	}
	now, err := bootClock()
	return time.Duration(max(now-frozenAt, 0)), err
}

// killed reports whether a process of the tree is gone.
func (m *Migration) killed() bool {
	for _, p := range m.processes {
		if p.ending() {
			return true
		}
	}
	return len(m.processes) < len(m.plan.Processes)
}

// retakeLocks takes file locks back that were released for the destination.
// taken are those that somebody else has kept for too long: without them the
// process runs on all the same.
func (m *Migration) retakeLocks(ctx context.Context) (taken []error, err error) {
	if m.plan.Locks == nil || len(m.processes) < len(m.plan.Processes) {
		return nil, nil
	}
	for _, p := range m.processes {
		if p.stopped == nil {
			return nil, fmt.Errorf("taking file locks back: process %d is not stopped", p.pid)
		}
	}
	giveUp := time.After(lockFor)
	for {
		taken, err = resource.RetakeLocks(ctx, m.plan.Locks, m.targets())
		if err != nil || len(taken) == 0 {
			return taken, err
		}
		select {
		case <-giveUp:
			return taken, nil
		case <-time.After(lockEvery):
		}
	}
}

// lose notes what the process does not have any more. Another try knows nothing of it.
func (m *Migration) lose(what string, lost ...error) {
	if len(lost) == 0 {
		return
	}
	what += strings.ReplaceAll(errors.Join(lost...).Error(), "\n", "; ")
	switch {
	case m.resumed.Lost == "":
		m.resumed.Lost = what
	case !strings.Contains(m.resumed.Lost, what): // by another try
		m.resumed.Lost += "; " + what
	}
}

// leave moves the tree back to where it was, ends the tracking and lets go of
// everything. After an error it may be called again.
func (m *Migration) leave(ctx context.Context) error {
	if m.grouped {
		if m.left.IsZero() {
			m.left = time.Now()
		}
		if err := m.leaveGroup(ctx); err != nil {
			if time.Since(m.left) < leaveFor {
				return err
			}
			// Others wait for the end of this, and the process runs.
			m.lose("it stays in a control group of ours: ", err)
		}
		m.grouped = false
	}
	// What is only ours goes away whatever it says.
	m.over = true
	var errs []error
	for _, p := range m.processes {
		errs = append(errs, p.close())
	}
	if m.dump != nil {
		errs = append(errs, m.dump.Close())
	}
	return errors.Join(errs...)
}

// leaveFor is how long it is tried.
const leaveFor = time.Minute

func (m *Migration) leaveGroup(ctx context.Context) error {
	var errs []error
	for _, p := range m.processes {
		if p.exited() {
			continue
		}
		if err := p.origin.Add(p.pid); !errors.Is(err, unix.ESRCH) {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(append(errs, m.emptyGroup())...); err != nil {
		return err // to wait for an empty group would be in vain
	}
	return m.group.Remove(ctx)
}

// emptyGroup moves what the tree has started meanwhile to where the tree is.
func (m *Migration) emptyGroup() error {
	for {
		members, err := m.group.Processes()
		if err != nil || len(members) == 0 {
			return err
		}
		origin := freezer.At(m.plan.Processes[0].Origin)
		for _, pid := range members {
			if err := origin.Add(pid); err != nil && !errors.Is(err, unix.ESRCH) {
				return err
			}
		}
	}
}

// Recover takes up what an agent that died has left of a migration, by the plan
// that was saved last. Only Resume and Dispose can be called.
func (h *Host) Recover(_ context.Context, plan Plan, save func(Plan) error) (*Migration, error) {
	m := &Migration{host: h, config: Config{Migration: plan.Migration, Epoch: plan.Epoch, Save: save}, recovered: true, plan: plan, group: freezer.At(plan.Group), grouped: plan.Group != ""}
	m.gauges.measured.PhasesMS = make(map[string]float64)
	for _, planned := range plan.Processes {
		stat, err := procfs.Process{PID: planned.PID}.Stat()
		if errors.Is(err, procfs.ErrGone) || err == nil && (stat.StartTime != planned.StartTime || stat.State == 'Z') {
			continue // it is gone, and its PID perhaps another's by now
		}
		if err != nil {
			return nil, errors.Join(err, m.closeAll())
		}
		p, err := openProcess(h.config.CgroupRoot, planned.PID)
		if errors.Is(err, ErrProcess) {
			continue
		}
		if err != nil {
			return nil, errors.Join(err, m.closeAll())
		}
		p.origin, p.planned = freezer.At(planned.Origin), planned
		m.processes = append(m.processes, p)
	}
	return m, nil
}

func (m *Migration) closeAll() error {
	var errs []error
	for _, p := range m.processes {
		errs = append(errs, p.close())
	}
	return errors.Join(errs...)
}

// mendFor is how long a process stands still that cannot be mended: most of all
// while one of its threads sleeps uninterruptibly in the kernel.
const mendFor = time.Minute

// catch stops a tree that another agent has left somewhere in the middle, and
// mends what it has left in it. A tree that is thawed and in which nothing is
// to be mended runs already: it is left alone. After an error the tree is as it
// was.
func (m *Migration) catch(ctx context.Context) error {
	if !m.recovered || !m.grouped || len(m.processes) == 0 {
		return nil
	}
	frozen, err := m.group.Frozen()
	if err != nil || !frozen && !m.plan.mends() {
		return err
	}
	members, err := m.group.Processes()
	if err != nil || len(members) == 0 {
		return err // it was never moved into the group
	}
	if m.caught.IsZero() {
		m.caught = time.Now()
	}
	if frozen { // what follows may let it run for moments
		m.resumeConnections()
	}
	if err = m.mend(ctx); err == nil {
		return nil
	}
	if frozen {
		again, cancel := context.WithTimeout(context.WithoutCancel(ctx), standTimeout)
		err = errors.Join(err, m.group.Freeze(again))
		cancel()
	} else {
		err = errors.Join(err, m.group.Thaw())
	}
	for _, p := range m.processes {
		err = errors.Join(err, p.release())
	}
	if time.Since(m.caught) < mendFor {
		return err
	}
	m.lose("it could not be mended: ", err)
	return nil
}

// mend stops the tree and takes what is ours out of it.
func (m *Migration) mend(ctx context.Context) error {
	if err := m.stopOutside(ctx); err != nil {
		return err
	}
	for _, p := range m.processes {
		if m.plan.Injecting {
			if err := p.closeUserfaultfds(ctx); err != nil {
				return err
			}
		}
		if err := p.unmapScratch(ctx); err != nil {
			return err
		}
	}
	return nil
}

// stopOutside stops the tree when none of its threads is in the middle of a
// remote call: one that the dead agent has begun is still carried out, and
// could make what is about to be looked for.
func (m *Migration) stopOutside(ctx context.Context) error {
	for try := 0; ; try++ {
		if err := m.stop(ctx); err != nil {
			return err
		}
		inCall, err := m.inCall()
		if err != nil {
			return err
		}
		// A program may also block all signals for reasons of its own.
		if inCall == certainlyNot || inCall == perhaps && try >= perhapsTries {
			return nil
		}
		if err := m.release(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("a thread does not return from a remote call: %w", context.Cause(ctx))
		case <-time.After(inCallFor):
		}
	}
}

// How sure it is that a thread is in the middle of a remote call.
const (
	certainlyNot = iota
	perhaps      // it blocks all signals, as remote calls do
	certainly    // its next instruction is in memory of ours
)

func (m *Migration) inCall() (int, error) {
	const unblockable = 1<<(unix.SIGKILL-1) | 1<<(unix.SIGSTOP-1)
	found := certainlyNot
	for _, p := range m.processes {
		for _, tid := range p.stopped.ThreadIDs() {
			thread := p.stopped.Thread(tid)
			if s := p.planned.Scratch; s != nil {
				regs := thread.Registers()
				if at := regs.Rip - uint64(s.Code); at < image.PageSize {
					return certainly, nil
				}
			}
			mask, err := thread.SignalMask()
			if err != nil {
				return found, err
			}
			if mask|unblockable == ^uint64(0) {
				found = perhaps
			}
		}
	}
	return found, nil
}

// mends reports whether something may have to be mended inside the processes.
func (p *Plan) mends() bool {
	return p.Injecting || p.Locks != nil ||
		slices.ContainsFunc(p.Processes, func(p PlanProcess) bool { return p.Scratch != nil })
}

// closeUserfaultfds closes, inside the stopped process, those that were not
// there before.
func (p *process) closeUserfaultfds(ctx context.Context) error {
	now, err := userfaultfds(p.pid)
	if err != nil {
		return err
	}
	for _, fd := range now {
		if slices.Contains(p.planned.Userfaultfds, fd) {
			continue
		}
		if _, err := p.leader().Syscall(ctx, unix.SYS_CLOSE, uintptr(fd)); err != nil {
			return fmt.Errorf("closing descriptor %d in process %d: %w", fd, p.pid, err)
		}
	}
	return nil
}

// unmapScratch unmaps, inside the stopped process, memory of ours that another
// agent has left there.
func (p *process) unmapScratch(ctx context.Context) error {
	if p.planned.Scratch == nil {
		return nil
	}
	vmas, err := procfs.Process{PID: p.pid}.Maps()
	if err != nil {
		return err
	}
	protections := []int{unix.PROT_READ | unix.PROT_EXEC, unix.PROT_READ | unix.PROT_WRITE}
	for i, ours := range scratchRanges(p.planned.Scratch) {
		// The kernel may have joined it with memory of the program's.
		there := slices.ContainsFunc(vmas, func(v procfs.VMA) bool {
			return v.Start <= ours.Start && ours.End <= v.End && v.Prot == protections[i] && !v.Shared && v.Name == ""
		})
		if !there {
			continue
		}
		if _, err := p.leader().Syscall(ctx, unix.SYS_MUNMAP, uintptr(ours.Start), uintptr(ours.Bytes())); err != nil {
			return fmt.Errorf("unmapping memory at %#x in process %d: %w", ours.Start, p.pid, err)
		}
	}
	return nil
}
