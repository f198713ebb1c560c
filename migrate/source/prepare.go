package source

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate/dirty"
	"github.com/pagurus-project/pagurus/migrate/procfs"
)

// enclose puts the tree into a control group of its own, below the one that it
// is in, so that all limits stay in force.
func (m *Migration) enclose() error {
	m.plan.Group = m.group.Dir()
	if err := m.save(); err != nil {
		return err
	}
	m.grouped = true
	if err := m.group.Make(); err != nil {
		return fmt.Errorf("making a control group for the process: %w", err)
	}
	for _, p := range m.processes {
		if err := m.group.Add(p.pid); err != nil {
			return err
		}
	}
	return m.checkTree()
}

// checkAgain looks for what preflight has looked for and what the process has done
// since: what it started before it was enclosed, and what that holds of its.
func (m *Migration) checkAgain() error {
	for _, p := range m.processes {
		if err := m.dump.CheckProcess(p.pid); err != nil {
			return errors.Join(m.checkTree(), err)
		}
	}
	if err := m.dump.NoteHolders(m.pids()); err != nil {
		return errors.Join(m.checkTree(), err)
	}
	if err := m.dump.CheckAddressesAlong(m.config.Addresses, m.pids()); err != nil {
		return errors.Join(m.checkTree(), err)
	}
	if err := m.checkTree(); err != nil {
		return err
	}
	return m.blocked()
}

// A process that does not stand still within this time sleeps uninterruptibly
// in the kernel.
const standTimeout = 2 * time.Second

// stop stops all threads of the tree so that they do not notice. They are
// frozen while they are being stopped: should we die before the system calls
// that they sleep in are mended (package parasite), they stay frozen. When it
// returns they are thawed, held by ptrace alone, and can make remote calls.
func (m *Migration) stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, standTimeout)
	defer cancel()
	if err := m.group.Freeze(ctx); err != nil {
		return err
	}
	frozen := time.Now()
	var group errgroup.Group
	for _, p := range m.processes {
		group.Go(func() error { return p.stop(ctx) })
	}
	if err := group.Wait(); err != nil {
		return fmt.Errorf("stopping the process: %w", err)
	}
	if m.dump != nil {
		if err := m.dump.ContinueWaits(m.targets(), frozen); err != nil {
			return err
		}
	}
	return m.group.Thaw()
}

// release lets the tree go on after stop, also if that has failed.
func (m *Migration) release() error {
	errs := []error{m.group.Thaw()}
	for _, p := range m.processes {
		errs = append(errs, p.release())
	}
	return errors.Join(errs...)
}

// standing calls f while the tree is stopped.
func (m *Migration) standing(ctx context.Context, f func() error) error {
	err := m.dump.NoteWaits(m.pids())
	if err == nil {
		err = m.stop(ctx)
	}
	if err == nil {
		err = f()
	}
	return errors.Join(err, m.release())
}

// track begins to track what the tree writes.
func (m *Migration) track(ctx context.Context) error {
	kind, err := dirty.Detect()
	if err != nil {
		return err
	}
	if kind == dirty.KindSoftDirty {
		for _, p := range m.processes {
			if p.tracker, err = dirty.NewSoftDirty(p.pid); err != nil {
				return err
			}
		}
		return nil
	}
	m.plan.Injecting = true
	for i, p := range m.processes {
		if m.plan.Processes[i].Userfaultfds, err = userfaultfds(p.pid); err != nil {
			return err
		}
	}
	if err := m.save(); err != nil {
		return err
	}
	err = m.standing(ctx, func() error {
		for _, p := range m.processes {
			if err := p.inject(ctx); err != nil {
				return fmt.Errorf("tracking the memory of process %d: %w", p.pid, err)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	m.plan.Injecting = false
	return m.save()
}

// inject makes a userfaultfd inside the stopped process and takes it over.
func (p *process) inject(ctx context.Context) error {
	fd, err := p.leader().Syscall(ctx, unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK|dirty.UserModeOnly)
	if err != nil {
		return fmt.Errorf("making a userfaultfd in it: %w", err)
	}
	own, err := unix.PidfdGetfd(int(p.pidfd.Fd()), int(fd), 0)
	if err != nil {
		err = fmt.Errorf("taking its userfaultfd over: %w", err)
	}
	// Whatever has happened: it is not to stay there.
	if _, closeErr := p.leader().Syscall(context.WithoutCancel(ctx), unix.SYS_CLOSE, fd); closeErr != nil {
		err = errors.Join(err, fmt.Errorf("closing its userfaultfd in it: %w", closeErr))
	}
	if err != nil {
		return err
	}
	p.tracker, err = dirty.NewAsync(os.NewFile(uintptr(own), "userfaultfd"), p.pid)
	return err
}

// userfaultfds lists the descriptors of that kind.
func userfaultfds(pid int) ([]int, error) {
	proc := procfs.Process{PID: pid}
	fds, err := proc.FDs()
	if err != nil {
		return nil, err
	}
	var found []int
	for _, fd := range fds {
		link, err := proc.Link(fmt.Sprintf("fd/%d", fd))
		if errors.Is(err, os.ErrNotExist) {
			continue // closed since
		}
		if err != nil {
			return nil, err
		}
		if strings.HasPrefix(link, "anon_inode:[userfaultfd]") {
			found = append(found, fd)
		}
	}
	return found, nil
}
