package parasite

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// ErrGone says that the thread or process has exited.
var ErrGone = errors.New("process is gone")

// stop is one ptrace-stop of a thread, decoded from wait4's status.
type stop struct {
	status unix.WaitStatus
}

func (s stop) gone() bool { return s.status.Exited() || s.status.Signaled() }

// event is the PTRACE_EVENT_* of the stop, or 0.
func (s stop) event() int { return int(s.status) >> 16 }

// syscall reports a stop at the entry or exit of a system call.
func (s stop) syscall() bool {
	return s.status.Stopped() && s.status.StopSignal() == unix.SIGTRAP|syscallStopSignal
}

// trap reports a breakpoint or the like: SIGTRAP without an event.
func (s stop) trap() bool {
	return s.status.Stopped() && s.event() == 0 && s.status.StopSignal() == unix.SIGTRAP
}

// signal is the signal about to be delivered, or 0 for another kind of stop.
func (s stop) signal() unix.Signal {
	if !s.status.Stopped() || s.event() != 0 || s.syscall() {
		return 0
	}
	return s.status.StopSignal()
}

func (s stop) String() string {
	switch {
	case s.status.Exited():
		return fmt.Sprintf("exit with status %d", s.status.ExitStatus())
	case s.status.Signaled():
		return fmt.Sprintf("death by %v", s.status.Signal())
	case s.syscall():
		return "system call stop"
	case s.event() != 0:
		return fmt.Sprintf("event %d, %v", s.event(), s.status.StopSignal())
	}
	return fmt.Sprintf("stop by %v", s.status.StopSignal())
}

// How long to spin before sleeping, and how the sleeps grow. A remote system
// call takes microseconds; a thread in the kernel may take much longer to stop.
const (
	waitSpins    = 200
	waitSleep    = 20 * time.Microsecond
	waitSleepMax = time.Millisecond
)

// wait waits for the next stop of one thread. To be called by the tracer's thread.
func wait(ctx context.Context, tid int) (stop, error) {
	var s stop
	err := poll(ctx, func() (stopped bool, err error) {
		s, stopped, err = stopOf(tid)
		return stopped, err
	})
	if err != nil {
		return stop{}, fmt.Errorf("waiting for thread %d: %w", tid, err)
	}
	return s, nil
}

// stopOf is the next stop of a thread, if it has come to one.
func stopOf(tid int) (s stop, stopped bool, err error) {
	for {
		got, err := unix.Wait4(tid, &s.status, unix.WALL|unix.WNOHANG, nil)
		switch err {
		case nil:
			return s, got == tid, nil
		case unix.EINTR:
		case unix.ECHILD, unix.ESRCH:
			return s, false, ErrGone
		default:
			return s, false, err
		}
	}
}

// poll asks until the answer is yes: a blocking wait could not be given up when
// ctx ends. First in a tight loop that yields the processor, then with short sleeps.
func poll(ctx context.Context, done func() (bool, error)) error {
	sleep := waitSleep
	for n := 0; ; n++ {
		if yes, err := done(); yes || err != nil {
			return err
		}
		if n < waitSpins {
			_, _, _ = unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		pause := unix.NsecToTimespec(int64(sleep))
		_ = unix.Nanosleep(&pause, nil) // EINTR only shortens it
		sleep = min(sleep*2, waitSleepMax)
	}
}
