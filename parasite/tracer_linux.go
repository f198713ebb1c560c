package parasite

import (
	"errors"
	"fmt"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// A Tracer is one OS thread that traces processes. Its methods and those of
// its processes may be called from any goroutine and are carried out one after
// the other on that thread.
type Tracer struct {
	requests chan request
	done     chan struct{} // closed when the thread has ended
	tid      int
	close    sync.Once

	// Owned by the thread.
	processes map[int]*Process
}

type request struct {
	run    func() error
	answer chan error
}

// ErrClosed says that the tracer was closed.
var ErrClosed = errors.New("tracer is closed")

// NewTracer starts a tracer. Close it to let go of its processes. The first one
// sets SA_NOCLDSTOP for this process's SIGCHLD.
func NewTracer() *Tracer {
	noStopSignals()
	t := &Tracer{
		requests:  make(chan request),
		done:      make(chan struct{}),
		processes: make(map[int]*Process),
	}
	started := make(chan struct{})
	go t.serve(started)
	<-started
	return t
}

// serve is the tracer's thread. The goroutine ends without unlocking, so the
// thread ends too, and with it whatever it still traced. It is not the process's
// first thread, whose id stays taken as long as the process is a zombie: targets
// look for the tracer's.
func (t *Tracer) serve(started chan struct{}) {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		go t.serve(started)
		<-started
		runtime.UnlockOSThread()
		return
	}
	defer close(t.done)
	t.tid = unix.Gettid()
	close(started)
	for r := range t.requests {
		if r.run == nil {
			close(r.answer)
			return
		}
		r.answer <- r.run()
	}
}

// Do runs f on the tracer's thread, where methods of its processes cost no
// hand-over. Called on that thread, it simply calls f.
func (t *Tracer) Do(f func() error) error {
	if unix.Gettid() == t.tid {
		return f()
	}
	r := request{run: f, answer: make(chan error, 1)}
	select {
	case t.requests <- r:
		return <-r.answer
	case <-t.done:
		return ErrClosed
	}
}

// Close detaches every process that is still traced, as [Process.Detach]
// does, kills those that were launched, and ends the thread.
func (t *Tracer) Close() error {
	var err error
	t.close.Do(func() {
		err = t.Do(func() error {
			var errs []error
			for _, p := range t.processes {
				if p.launched {
					errs = append(errs, p.kill())
				} else {
					errs = append(errs, p.detach())
				}
			}
			return errors.Join(errs...)
		})
		r := request{answer: make(chan error)}
		t.requests <- r
		<-t.done
	})
	return err
}

// ptrace is the one place where requests are made.
//
//go:uintptrescapes
func ptrace(request, tid int, addr, data uintptr) error {
	_, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, uintptr(request), uintptr(tid), addr, data, 0, 0)
	switch errno {
	case 0:
		return nil
	case unix.ESRCH:
		return fmt.Errorf("ptrace request %#x on thread %d: %w", request, tid, ErrGone)
	}
	return fmt.Errorf("ptrace request %#x on thread %d: %w", request, tid, errno)
}

// ptraceCount is ptrace for the requests whose result is a number.
//
//go:uintptrescapes
func ptraceCount(request, tid int, addr, data uintptr) (int, error) {
	n, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, uintptr(request), uintptr(tid), addr, data, 0, 0)
	if errno != 0 {
		return 0, fmt.Errorf("ptrace request %#x on thread %d: %w", request, tid, errno)
	}
	return int(n), nil
}
