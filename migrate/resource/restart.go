package resource

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/migrate/procfs"
	"github.com/pagurus-project/pagurus/parasite"
)

// A relative time-out that was interrupted once goes on by restart_syscall(2):
// the thread's registers do not say any more which call it is, only the kernel
// knows. Where the thread sleeps in it gives it away.

// NoteRestarts finds out for every thread of running processes that goes on
// with an interrupted call which one that is. What it learns serves the next
// Dump; it has to be called just before the processes are stopped.
func (d *TreeDump) NoteRestarts(pids []int) error {
	d.restarts = make(map[int]int)
	for _, pid := range pids {
		p := procfs.Process{PID: pid}
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
				d.restarts[tid] = nr
			}
		}
	}
	return nil
}

// restartedCall is the call that a thread goes on with, or -1.
func restartedCall(p procfs.Process, tid int) (int, error) {
	// "219 0x7ffd... " and five more arguments, stack and instruction pointers
	// (proc_pid_syscall(5)).
	text, err := p.Read(fmt.Sprintf("task/%d/syscall", tid))
	if err != nil {
		return -1, err
	}
	words := strings.Fields(string(text))
	if len(words) < 2 || words[0] != strconv.Itoa(unix.SYS_RESTART_SYSCALL) {
		return -1, nil
	}
	first, err := strconv.ParseUint(strings.TrimPrefix(words[1], "0x"), 16, 64)
	if err != nil {
		return -1, err
	}
	where, err := p.Read(fmt.Sprintf("task/%d/wchan", tid))
	if err != nil {
		return -1, err
	}
	return callOf(string(where), first), nil
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
	if nr, ok := d.restarts[tid]; ok {
		call.Nr = nr
		regs.Orig_rax = uint64(nr)
	}
}
