package resource

import (
	"errors"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/migrate/procfs"
	"github.com/pagurus-project/pagurus/parasite"
)

// A system call with a relative time-out that is interrupted is to go on with
// what is left of it. How that is, depends on the call:
//
//	                        at the source, resumed          at the destination
//	nanosleep, clock_,      the kernel knows (restart       begun with what is left,
//	poll, futex             block)                          interrupted, restarted
//	ppoll, select, pselect  the kernel writes into the program's own time-out what is left
//	epoll_wait, _pwait      made again with what is left, if the program cannot see that
//	                        (SetFourthArgument), else from the beginning
//	others                  made again from the beginning
//
// What is left is known of threads that sleep (procfs.SleepReader), so it is
// noted before a process is stopped, and holds if the thread has not woken up
// before it was.

// waits is what is known of the threads of processes that are about to be stopped.
type waits struct {
	sleeps map[int]procfs.Sleep
	// restarted is the call that a thread goes on with by restart_syscall(2): its
	// registers do not say any more which that is.
	restarted map[int]int
}

// NoteWaits looks in what calls the threads of running processes sleep, and for
// how long. It is to be called just before the processes are stopped.
func (d *TreeDump) NoteWaits(pids []int) error {
	d.waits = waits{make(map[int]procfs.Sleep), make(map[int]int)}
	for _, pid := range pids {
		p := procfs.Process{PID: pid}
		if err := d.noteSleeps(p); err != nil {
			return err
		}
		tids, err := p.Threads()
		if err != nil {
			return err
		}
		for _, tid := range tids {
			nr, err := restartedCall(p, tid)
			if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("looking where thread %d sleeps: %w", tid, err)
			}
			if nr >= 0 {
				d.waits.restarted[tid] = nr
			}
		}
	}
	return nil
}

func (d *TreeDump) noteSleeps(p procfs.Process) error {
	sleeps, err := d.readers.Sleeps.Sleeps(p)
	if err != nil {
		return err
	}
	for tid, s := range sleeps {
		if s.Timed {
			d.waits.sleeps[tid] = s
		}
	}
	return nil
}

// ContinueWaits has calls of stopped processes that would be made again from
// their beginning go on with what is left of their time-outs, where that can be
// done. The processes were stopped by their control group, and were frozen by
// then, and after that by ptrace.
func (d *TreeDump) ContinueWaits(stopped []*parasite.Process, frozen time.Time) error {
	if len(d.waits.sleeps) == 0 {
		return nil
	}
	for _, target := range stopped {
		now, err := d.readers.Sleeps.Sleeps(procfs.Process{PID: target.PID()})
		if err != nil {
			return err
		}
		for _, tid := range target.ThreadIDs() {
			noted, ok := d.waits.sleeps[tid]
			switch {
			case !ok:
			case !stillSleeps(noted, now[tid], frozen):
				delete(d.waits.sleeps, tid) // perhaps it has gone to sleep again
			default:
				if err := continueWait(target.Thread(tid), time.Until(noted.Until)); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// stillSleeps reports whether a thread that was stopped, and slept before, had not
// woken up by then. Each of the two stops puts it to sleep once; but one that is
// interrupted on its way into the freezer does not sleep there, and so another sleep
// of the program's could be taken for that. What would have ended before the thread
// was frozen has ended.
func stillSleeps(noted, now procfs.Sleep, frozen time.Time) bool {
	const stops = 2
	return now.Switches == noted.Switches+stops && noted.NotBefore.After(frozen)
}

func continueWait(t *parasite.Thread, left time.Duration) error {
	call := t.Interrupted()
	if call.Restart != parasite.RestartNoHand || call.Nr != unix.SYS_EPOLL_WAIT && call.Nr != unix.SYS_EPOLL_PWAIT {
		return nil
	}
	wanted := int32(call.Args[3])
	if wanted <= 0 {
		return nil
	}
	err := t.SetFourthArgument(uint64(min(wanted, milliseconds(left))))
	if errors.Is(err, parasite.ErrInUse) {
		return nil
	}
	return err
}

// milliseconds rounds up, and is not negative.
func milliseconds(d time.Duration) int32 {
	return int32(min(max(d+time.Millisecond-1, 0)/time.Millisecond, math.MaxInt32))
}

// left is what was left of the time-out of a stopped thread's call when the
// clocks were read; negative if it has none or it is not known.
func (d *TreeDump) left(tid int) int64 {
	s, ok := d.waits.sleeps[tid]
	if !ok {
		return -1
	}
	return max(s.Until.Sub(d.clocksRead).Nanoseconds(), 0)
}

// restartedCall is the call that a thread goes on with, or -1.
func restartedCall(p procfs.Process, tid int) (int, error) {
	text, err := p.Read(fmt.Sprintf("task/%d/syscall", tid))
	if err != nil {
		return -1, err
	}
	first, restarts, err := parseRestarted(string(text))
	if err != nil || !restarts {
		return -1, err
	}
	where, err := p.Read(fmt.Sprintf("task/%d/wchan", tid))
	if err != nil {
		return -1, err
	}
	return callOf(string(where), first), nil
}

// parseRestarted reads the first argument of a call that restarts, from
// "219 0x7ffd..." and five more arguments, stack and instruction pointers
// (proc_pid_syscall(5)).
func parseRestarted(text string) (first uint64, restarts bool, err error) {
	words := strings.Fields(text)
	if len(words) < 2 || words[0] != strconv.Itoa(unix.SYS_RESTART_SYSCALL) {
		return 0, false, nil
	}
	first, err = strconv.ParseUint(strings.TrimPrefix(words[1], "0x"), 16, 64)
	return first, err == nil, err
}

// callOf tells by the kernel function in which a thread sleeps, and by the
// call's first argument, which of the calls that restart this way it is: there
// are futex, poll and the two that sleep. The functions of the last are left
// out of what the kernel shows (wchan looks past scheduling functions).
func callOf(where string, first uint64) int {
	switch {
	case where == "0":
		return -1 // it does not sleep
	case strings.Contains(where, "futex"):
		return unix.SYS_FUTEX
	case strings.Contains(where, "poll"):
		return unix.SYS_POLL
	case int64(first) < image.PageSize:
		return unix.SYS_CLOCK_NANOSLEEP // on a clock; the other one's argument is an address
	}
	return unix.SYS_NANOSLEEP
}

// nameCall puts the right number to a call that was being restarted. One that
// stays unknown returns EINTR at the destination.
func (d *TreeDump) nameCall(tid int, call *image.SystemCall, regs *parasite.Registers) {
	if call.Nr != unix.SYS_RESTART_SYSCALL {
		return
	}
	if nr, ok := d.waits.restarted[tid]; ok {
		call.Nr = nr
		regs.Orig_rax = uint64(nr)
	}
}

// resumeWaits makes the threads begin the calls in which the kernel at the
// source kept account of the time, with what is left of it, so that the kernel
// here does. Passed is how many nanoseconds have gone by since the image was
// taken.
func (r *ProcessRestore) resumeWaits(passed int64) error {
	for i := range r.Process.Threads {
		t := &r.Process.Threads[i]
		if t.Call == nil || t.Call.Restart != int(parasite.RestartRemainder) || t.Call.Remaining < 0 {
			continue
		}
		left := unix.NsecToTimespec(max(t.Call.Remaining-passed, 0))
		args := t.Call.Args
		memory := r.Shell.Scratch().Data
		switch t.Call.Nr {
		case unix.SYS_NANOSLEEP:
			args[0] = uint64(memory)
		case unix.SYS_CLOCK_NANOSLEEP:
			args[2] = uint64(memory)
		case unix.SYS_POLL:
			args[2] = uint64(milliseconds(time.Duration(left.Nano())))
		case unix.SYS_FUTEX:
			const operation = 0x7f // without FUTEX_PRIVATE_FLAG
			if args[1]&operation != futexWait {
				continue // its time-out is a point in time
			}
			args[3] = uint64(memory)
		default:
			continue
		}
		if err := r.Shell.WriteMemory(memory, bytesOf(&left)); err != nil {
			return err
		}
		interrupted, err := r.Shell.Thread(t.TID).BeginCall(r.Ctx, t.Call.Nr, args)
		if err != nil {
			return fmt.Errorf("thread %d, system call %d: %w", t.TID, t.Call.Nr, err)
		}
		// One that does not wait any more is made again by the program's thread.
		r.waiting[t.TID] = interrupted
	}
	return nil
}

const futexWait = 0 // FUTEX_WAIT (include/uapi/linux/futex.h)
