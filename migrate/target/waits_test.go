package target_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/migrate/procfs"
)

// What is left of a time-out stays what it was: the calls end when they were to
// end, but for the time for which the process stood still, after a rehearsal and
// after a move. Each had waited for longer than either takes.
func TestWaits(t *testing.T) {
	host := newSource(t)
	reader, err := procfs.NewSleepReader()
	if err != nil {
		t.Skip("time-outs start over here: ", err)
	}
	defer reader.Close()
	dir := t.TempDir()
	pid := startProgram(t, filepath.Join(dir, "log"), buildWorkload(t, dir), "epoll", "-period", "1h")
	waiting := []int{unix.SYS_EPOLL_PWAIT, unix.SYS_POLL, unix.SYS_PPOLL, unix.SYS_PSELECT6, unix.SYS_NANOSLEEP, unix.SYS_CLOCK_NANOSLEEP, unix.SYS_FUTEX}
	var before map[int]ending
	await(t, func() bool {
		before = endings(t, reader, pid)
		var calls []int
		for _, e := range before {
			calls = append(calls, e.call)
		}
		return !slices.ContainsFunc(waiting, func(nr int) bool { return !slices.Contains(calls, nr) })
	})
	start, outer, stood := time.Now(), pid, time.Duration(0)
	for _, rehearse := range []bool{true, false} {
		// Starting over is to look different from standing still.
		await(t, func() bool { return time.Since(start) > 2*time.Second+4*stood })
		began := time.Now()
		d := move(t, host, pid, migrate.Options{Rehearse: rehearse}.WithDefaults())
		stood += time.Since(began)
		if !rehearse {
			outer = d.arrived(pid)
		}
		now := make(map[int]ending)
		await(t, func() bool { // threads resume one after the other
			now = endings(t, reader, outer)
			return len(now) >= len(before)
		})
		for tid, was := range before {
			is, ok := now[tid]
			if late := is.at.Sub(was.at); !ok || late < -10*time.Millisecond || late > stood {
				t.Errorf("rehearsed %v: system call %d ends %v later, after standing still for at most %v", rehearse, was.call, late, stood)
			}
		}
	}
}

// An ending is when a thread's wait ends.
type ending struct {
	call int
	at   time.Time
}

// endings are those of the threads that were not made by the Go runtime for
// itself: of these, only the ones in the calls of interest have a time-out of an
// hour.
func endings(t *testing.T, reader *procfs.SleepReader, pid int) map[int]ending {
	t.Helper()
	sleeps, err := reader.Sleeps(procfs.Process{PID: pid})
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[int]ending)
	for tid, s := range sleeps {
		if left := time.Until(s.Until); !s.Timed || left < 30*time.Minute || left > 90*time.Minute {
			continue
		}
		// Seen from outside, the thread may have another number.
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/syscall", pid, outside(t, pid, tid)))
		if err != nil {
			t.Fatal(err)
		}
		nr, err := strconv.Atoi(strings.Fields(string(text))[0])
		if err != nil || nr == unix.SYS_RT_SIGTIMEDWAIT { // starts over
			continue
		}
		all[tid] = ending{call: nr, at: s.Until}
	}
	return all
}

// outside is the id here of a thread that knows itself as tid.
func outside(t *testing.T, pid, tid int) int {
	t.Helper()
	threads, err := procfs.Process{PID: pid}.Threads()
	if err != nil {
		t.Fatal(err)
	}
	for _, outer := range threads {
		fields := strings.Fields(line(read(t, fmt.Sprintf("/proc/%d/task/%d/status", pid, outer)), "NSpid:"))
		if len(fields) > 0 && fields[len(fields)-1] == strconv.Itoa(tid) {
			return outer
		}
	}
	t.Fatalf("process %d has no thread %d", pid, tid)
	return 0
}

func line(text, prefix string) string {
	for l := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(l, prefix); ok {
			return rest
		}
	}
	return ""
}
