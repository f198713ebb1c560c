package main

import (
	"errors"
	"flag"
	"fmt"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// epoll has one thread in each of the system calls that a stop without a signal
// may interrupt: those that the kernel then ends with EINTR (signal(7)), and
// those that it restarts in ways of their own. EINTR, a wait that is too short
// and a wake-up that got lost are all problems.
type epoll struct {
	period  time.Duration
	file    string
	journal *journal
	waiters []*waiter
}

func newEpoll(flags *flag.FlagSet, j *journal) program {
	e := &epoll{journal: j}
	flags.DurationVar(&e.period, "period", 100*time.Millisecond, "how long a call waits before its time is up")
	flags.StringVar(&e.file, "file", "", "a file to write to and to watch by inotify; empty for neither")
	return e
}

func (e *epoll) start() error {
	if e.period < time.Millisecond {
		return fmt.Errorf("period %v is below a millisecond", e.period)
	}
	var d waitDescriptors
	if err := d.open(e.period, e.file); err != nil {
		return fmt.Errorf("opening what to wait on: %w", err)
	}
	e.waiters = waiters(d, e.period)
	ready := make(chan struct{})
	for _, w := range e.waiters {
		w.journal, w.questions = e.journal, make(chan chan answer)
		go w.run(ready)
	}
	for range e.waiters {
		<-ready
	}
	return nil
}

func (e *epoll) verify() findings {
	var questions []chan chan answer
	for _, w := range e.waiters {
		questions = append(questions, w.questions)
	}
	return collect(questions)
}

// A waiter is one thread that makes one system call for ever.
type waiter struct {
	name      string
	least     time.Duration // that a call takes
	call      func() error  // waits once
	calls     int64
	journal   *journal
	questions chan chan answer
}

func (w *waiter) run(ready chan<- struct{}) {
	runtime.LockOSThread()
	// Without signals, the Go runtime's own included, nothing but a stop
	// interrupts a call.
	var all unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^uint64(0)
	}
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &all, nil); err != nil {
		w.journal.problemf("blocking signals for %s: %v", w.name, err)
	}
	watch := newWatch(w.journal)
	ready <- struct{}{}
	for {
		before := monotonic()
		err := w.call()
		passed := time.Duration(monotonic() - before)
		switch {
		case err != nil:
			w.journal.problemf("%s: %v", w.name, err)
		case passed < w.least:
			w.journal.problemf("%s ended too early", w.name)
		}
		w.calls++
		select {
		case q := <-w.questions:
			q <- answer{thread: watch.report(), clock: watch.clock, counts: map[string]int64{w.name: w.calls}}
		default:
		}
		watch.step()
	}
}

// errTooSoon is something that happened although nothing was to happen.
var errTooSoon = errors.New("woken by nothing")

// nothing is the result of a call that was to run out of time.
func nothing(n int, err error) error {
	if err == nil && n != 0 {
		return errTooSoon
	}
	return err
}

// expired is the same for calls that have an error for it.
func expired(err, want error) error {
	switch {
	case err == nil:
		return errTooSoon
	case errors.Is(err, want):
		return nil
	}
	return err
}

// something is the result of a read that was to get something.
func something(n int, err error) error {
	if err == nil && n == 0 {
		return errors.New("at the end of what has none")
	}
	return err
}

// waiters are the calls.
func waiters(d waitDescriptors, period time.Duration) []*waiter {
	ms := int(period.Milliseconds())
	ts := unix.NsecToTimespec(int64(period))
	buffer := func() []byte { return make([]byte, 4096) }
	readers := func(name string, fd int) *waiter {
		into := buffer()
		return &waiter{name: name, call: func() error { return something(unix.Read(fd, into)) }}
	}
	events, polled := make([]unix.EpollEvent, 1), make([]unix.EpollEvent, 1)
	drain, word := buffer(), new(uint32)
	all := []*waiter{
		{name: "epoll_wait", least: period, call: func() error { return nothing(unix.EpollWait(d.silent, polled, ms)) }},
		{name: "epoll_wait event", call: func() error {
			if err := something(unix.EpollWait(d.ticking, events, -1)); err != nil {
				return err
			}
			return something(unix.Read(d.ticker, drain))
		}},
		{name: "poll", least: period, call: func() error { return nothing(plainPoll(d.event, ms)) }},
		{name: "ppoll", least: period, call: func() error {
			return nothing(unix.Poll([]unix.PollFd{{Fd: int32(d.event), Events: unix.POLLIN}}, ms))
		}},
		{name: "select", least: period, call: func() error {
			var set unix.FdSet
			set.Set(d.event)
			tv := unix.NsecToTimeval(int64(period))
			return nothing(unix.Select(d.event+1, &set, nil, nil, &tv))
		}},
		{name: "nanosleep", least: period, call: func() error { return unix.Nanosleep(&ts, nil) }},
		{name: "clock_nanosleep", least: period, call: func() error {
			return unix.ClockNanosleep(unix.CLOCK_BOOTTIME, 0, &ts, nil)
		}},
		{name: "futex", least: period, call: func() error { return expired(futexWait(word, &ts), unix.ETIMEDOUT) }},
		{name: "rt_sigtimedwait", least: period, call: func() error {
			return expired(sigTimedWait(unix.SIGUSR2, &ts), unix.EAGAIN)
		}},
		readers("read timerfd", d.timer),
		readers("read pipe", d.pipe[0]),
		{name: "write pipe", least: period, call: func() error {
			if err := unix.Nanosleep(&ts, nil); err != nil {
				return err
			}
			return something(unix.Write(d.pipe[1], []byte{1}))
		}},
	}
	if d.inotify != 0 {
		all = append(all, readers("read inotify", d.inotify), &waiter{name: "write file", least: period, call: func() error {
			if err := unix.Nanosleep(&ts, nil); err != nil {
				return err
			}
			return something(unix.Pwrite(d.watched, []byte{1}, 0))
		}})
	}
	return all
}

// waitDescriptors are what the threads wait on.
type waitDescriptors struct {
	event   int // eventfd that is never written
	silent  int // epoll with event
	timer   int // timerfd that ticks
	ticker  int // another one
	ticking int // epoll with ticker
	pipe    [2]int
	watched int // file, 0 for none
	inotify int // looks at watched
}

func (d *waitDescriptors) open(period time.Duration, file string) (err error) {
	if d.event, err = unix.Eventfd(0, 0); err != nil {
		return err
	}
	if d.timer, err = tickingTimer(period); err != nil {
		return err
	}
	if d.ticker, err = tickingTimer(period); err != nil {
		return err
	}
	if d.silent, err = epollOf(d.event); err != nil {
		return err
	}
	if d.ticking, err = epollOf(d.ticker); err != nil {
		return err
	}
	if err = unix.Pipe(d.pipe[:]); err != nil || file == "" {
		return err
	}
	if d.watched, err = unix.Open(file, unix.O_RDWR|unix.O_CREAT, 0o600); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	if d.inotify, err = unix.InotifyInit1(0); err != nil {
		return err
	}
	_, err = unix.InotifyAddWatch(d.inotify, file, unix.IN_MODIFY)
	return err
}

func tickingTimer(period time.Duration) (int, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, 0)
	if err != nil {
		return 0, err
	}
	ts := unix.NsecToTimespec(int64(period))
	return fd, unix.TimerfdSettime(fd, 0, &unix.ItimerSpec{Interval: ts, Value: ts}, nil)
}

func epollOf(member int) (int, error) {
	fd, err := unix.EpollCreate1(0)
	if err != nil {
		return 0, err
	}
	return fd, unix.EpollCtl(fd, unix.EPOLL_CTL_ADD, member, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(member)})
}
