package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/e2e/workload/verdict"
)

// A journal collects what is found wrong, from all threads.
type journal struct {
	mu       sync.Mutex
	problems []string
	unlisted int
}

func (j *journal) problemf(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	j.mu.Lock()
	defer j.mu.Unlock()
	// What was wrong once is often found again.
	switch {
	case slices.Contains(j.problems, text):
	case len(j.problems) == verdict.MaxProblems:
		j.unlisted++
	default:
		j.problems = append(j.problems, text)
		fmt.Fprintln(os.Stderr, "problem:", text)
	}
}

// A watch notices what a move may do to a thread: how long it stood still,
// whether its clocks went on, whether it still is who it was. It belongs to
// one locked thread.
type watch struct {
	journal *journal
	pid     int
	tid     int

	// The clocks at the start: by the vDSO, and around that by system calls.
	start                   time.Time
	startBefore, startAfter int64

	last    time.Time
	steps   int64
	longest time.Duration
	clock   verdict.Clock
}

// newWatch must be called on the thread that is watched, locked.
func newWatch(j *journal) *watch {
	w := &watch{journal: j, pid: os.Getpid(), tid: unix.Gettid()}
	w.startBefore = monotonic()
	w.start = time.Now()
	w.startAfter = monotonic()
	w.last = w.start
	return w
}

// step notes that the thread has got on.
func (w *watch) step() {
	now := time.Now()
	passed := now.Sub(w.last)
	if passed < 0 {
		w.clock.MonotonicBackNS = max(w.clock.MonotonicBackNS, -int64(passed))
		w.journal.problemf("thread %d: CLOCK_MONOTONIC went back", w.tid)
	}
	if back := w.last.Round(0).Sub(now.Round(0)); back > 0 { // Round takes the monotonic reading away
		w.clock.RealtimeBackNS = max(w.clock.RealtimeBackNS, int64(back))
	}
	w.longest = max(w.longest, passed)
	w.last = now
	w.steps++
	// System calls, so not at every step of a fast loop.
	if w.steps%64 == 0 {
		w.check()
	}
}

// check compares the vDSO's clock with the kernel's and the thread with itself.
func (w *watch) check() {
	before := monotonic()
	now := time.Now()
	after := monotonic()
	least, most := before-w.startAfter, after-w.startBefore
	if passed := int64(now.Sub(w.start)); passed < least || passed > most {
		w.journal.problemf("thread %d: since the start %d ns have passed by the vDSO, %d to %d by system calls", w.tid, passed, least, most)
	}
	w.clock.DriftNS = int64(now.Round(0).Sub(w.start.Round(0)) - now.Sub(w.start))
	if tid := unix.Gettid(); tid != w.tid {
		w.journal.problemf("thread %d has become thread %d", w.tid, tid)
		w.tid = tid
	}
	if pid := os.Getpid(); pid != w.pid {
		w.journal.problemf("process %d has become process %d", w.pid, pid)
		w.pid = pid
	}
}

func (w *watch) report() verdict.Thread {
	w.check()
	return verdict.Thread{TID: w.tid, Steps: w.steps, LongestPauseNS: int64(w.longest)}
}

// monotonic asks the kernel, not the vDSO.
func monotonic() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err) // it takes a clock that every kernel has
	}
	return ts.Nano()
}

// sleepUntil waits for CLOCK_MONOTONIC to reach a time, in one system call
// that is only made again if a signal handler of the Go runtime interrupts it.
func sleepUntil(nanos int64) {
	until := unix.NsecToTimespec(nanos)
	for unix.ClockNanosleep(unix.CLOCK_MONOTONIC, unix.TIMER_ABSTIME, &until, nil) == unix.EINTR {
	}
}

func hostname() string {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return err.Error()
	}
	return strings.TrimRight(string(name.Nodename[:]), "\x00")
}

// worst puts the clocks of several threads together.
func worst(a, b verdict.Clock) verdict.Clock {
	c := verdict.Clock{
		MonotonicBackNS: max(a.MonotonicBackNS, b.MonotonicBackNS),
		RealtimeBackNS:  max(a.RealtimeBackNS, b.RealtimeBackNS),
		DriftNS:         a.DriftNS,
	}
	if max(b.DriftNS, -b.DriftNS) > max(a.DriftNS, -a.DriftNS) {
		c.DriftNS = b.DriftNS
	}
	return c
}
