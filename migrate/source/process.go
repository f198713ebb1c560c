package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate/dirty"
	"github.com/pagurus-project/pagurus/migrate/freezer"
	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/migrate/procfs"
	"github.com/pagurus-project/pagurus/pageserver"
	"github.com/pagurus-project/pagurus/parasite"
)

// A process is one process of the tree that is to be moved.
type process struct {
	pid     int
	start   uint64 // when it was started, in clock ticks since boot
	origin  freezer.Group
	pidfd   *os.File
	memory  *os.File // /proc/PID/mem of the address space that it had at Start
	pagemap *os.File
	probe   uint64 // an address in memory that does not go away
	planned PlanProcess

	tracer  *parasite.Tracer
	stopped *parasite.Process // all threads, or nil
	tracker dirty.Tracker

	found  found           // by the tracker, in this round
	layout []image.Mapping // as the destination knows them
	guards ranges
	sent   pageserver.PageSet // everything that was ever sent and may still be there
}

// openProcess opens what shows a process.
func openProcess(root string, pid int) (_ *process, err error) {
	p := &process{pid: pid, sent: make(pageserver.PageSet)}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.close())
		}
	}()
	proc := procfs.Process{PID: pid}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return p, fmt.Errorf("process %d: %w", pid, err)
	}
	p.pidfd = os.NewFile(uintptr(fd), fmt.Sprintf("pidfd of %d", pid))
	stat, err := proc.Stat()
	if err != nil {
		return p, err
	}
	p.start, p.probe = stat.StartTime, stat.StartStack
	if p.memory, err = os.OpenFile(proc.Path("mem"), os.O_RDONLY, 0); err != nil {
		return p, err
	}
	if p.pagemap, err = os.Open(proc.Path("pagemap")); err != nil {
		return p, err
	}
	if p.origin, err = freezer.Of(root, pid); err != nil {
		return p, err
	}
	return p, p.check()
}

// close lets go of a process that is not stopped and undoes its tracking.
func (p *process) close() error {
	var errs []error
	if p.tracker != nil {
		errs = append(errs, p.tracker.Close())
		p.tracker = nil
	}
	if p.tracer != nil {
		errs = append(errs, p.tracer.Close())
		p.tracer = nil
	}
	for _, file := range []**os.File{&p.memory, &p.pagemap, &p.pidfd} {
		if *file != nil {
			errs = append(errs, (*file).Close())
			*file = nil
		}
	}
	return errors.Join(errs...)
}

// check reports that the process has exited or runs another program. The
// descriptor is of the address space that the process had at first: of one that
// is gone there is nothing to read.
func (p *process) check() error {
	if p.exited() {
		return fmt.Errorf("%w: process %d has exited", ErrProcess, p.pid)
	}
	if p.leftMemory() {
		return fmt.Errorf("%w: process %d has exited or executed another program", ErrProcess, p.pid)
	}
	return nil
}

// leftMemory reports whether the address space that it had at first is gone.
func (p *process) leftMemory() bool {
	_, err := p.memory.ReadAt(make([]byte, 1), int64(p.probe))
	return errors.Is(err, io.EOF)
}

// ending reports whether the process has exited or is about to: its memory goes
// first, and as long as it has threads that are on their way out it still exists.
func (p *process) ending() bool {
	if p.exited() {
		return true
	}
	if !p.leftMemory() {
		return false
	}
	stat, err := procfs.Process{PID: p.pid}.Stat() // of another program, if it has executed one
	return errors.Is(err, procfs.ErrGone) || err == nil && stat.Exiting()
}

// exited reports whether the process has exited, be it reaped or not.
func (p *process) exited() bool {
	poll := []unix.PollFd{{Fd: int32(p.pidfd.Fd()), Events: unix.POLLIN}}
	n, err := unix.Poll(poll, 0)
	return err == nil && n > 0
}

// awaitExit waits until the process has exited.
func (p *process) awaitExit(ctx context.Context) error {
	for {
		// Nothing reports the end of a context here.
		const lookAgain = 50
		poll := []unix.PollFd{{Fd: int32(p.pidfd.Fd()), Events: unix.POLLIN}}
		n, err := unix.Poll(poll, lookAgain)
		switch {
		case err != nil && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("waiting for the end of process %d: %w", p.pid, err)
		case n > 0:
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("process %d does not die: %w", p.pid, context.Cause(ctx))
		}
	}
}

// kill kills the process. It runs no instruction of its own any more, frozen
// and stopped as it is.
func (p *process) kill() error {
	err := unix.PidfdSendSignal(int(p.pidfd.Fd()), unix.SIGKILL, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// stop stops all threads. It wants the process frozen.
func (p *process) stop(ctx context.Context) error {
	if p.tracer == nil {
		p.tracer = parasite.NewTracer()
	}
	target, err := p.tracer.Seize(p.pid)
	if err == nil {
		err = target.Stop(ctx)
	}
	if errors.Is(err, parasite.ErrGone) {
		err = fmt.Errorf("%w: process %d has exited", ErrProcess, p.pid)
	}
	if err != nil {
		return err
	}
	p.stopped = target
	if target.Thread(p.pid) == nil {
		return fmt.Errorf("the first thread of process %d has exited while others run on: such a process cannot move", p.pid)
	}
	return nil
}

// release lets all threads go on, unless they are frozen.
func (p *process) release() error {
	if p.stopped == nil {
		return nil
	}
	target := p.stopped
	p.stopped = nil
	return target.Detach()
}

// leader is the first thread of a stopped process.
func (p *process) leader() *parasite.Thread { return p.stopped.Thread(p.pid) }
