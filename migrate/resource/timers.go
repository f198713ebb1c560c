package resource

import (
	"errors"
	"fmt"
	"structs"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/parasite"
)

// timers: interval timers (getitimer(2)) and POSIX timers (timer_create(2)).
// They are made here and armed at the very end, with what is left by then.
var timers = processKind{
	name: "timers",
	dump: func(d *ProcessDump) error {
		dumpIntervalTimers(d)
		return dumpPOSIXTimers(d)
	},
	restore: createTimers,
}

// itimervalABI is struct itimerval.
type itimervalABI struct {
	_               structs.HostLayout
	interval, value struct{ sec, usec int64 }
}

// itimerspecABI is struct itimerspec.
type itimerspecABI struct {
	_               structs.HostLayout
	interval, value struct{ sec, nsec int64 }
}

func dumpIntervalTimers(d *ProcessDump) {
	b := d.batch(d.Proc.PID)
	for which := range 3 {
		var abi itimervalABI
		out := parasite.Struct(b, &abi)
		get := b.Call(unix.SYS_GETITIMER, uintptr(which), out)
		d.then(func() error {
			if _, err := b.Result(get); err != nil {
				return err
			}
			parasite.Into(b, out, &abi)
			t := image.IntervalTimer{
				Which:    which,
				Value:    abi.value.sec*1e9 + abi.value.usec*1e3,
				Interval: abi.interval.sec*1e9 + abi.interval.usec*1e3,
			}
			if which == unix.ITIMER_REAL {
				t.Value = d.leftThen(unix.CLOCK_MONOTONIC, t.Value)
			}
			if t.Value != 0 || t.Interval != 0 {
				d.Process.IntervalTimers = append(d.Process.IntervalTimers, t)
			}
			return nil
		})
	}
}

func dumpPOSIXTimers(d *ProcessDump) error {
	all, err := d.Proc.Timers()
	if err != nil {
		return err
	}
	b := d.batch(d.Proc.PID)
	for _, p := range all {
		t := image.Timer{ID: p.ID, Clock: p.Clock, Notify: p.Notify, Signal: p.Signal, SigVal: p.SigVal, Thread: p.Thread}
		if t.Clock < 0 && clockOwner(t.Clock) != 0 && clockOwner(t.Clock) != d.Proc.PID && !d.hasThread(clockOwner(t.Clock)) {
			d.Block(migrate.CodeOutsideEnd, "have the program delete it first", "timer %d of process %d runs on the processor time of process %d", t.ID, d.Proc.PID, clockOwner(t.Clock))
		}
		var abi itimerspecABI
		out := parasite.Struct(b, &abi)
		get := b.Call(unix.SYS_TIMER_GETTIME, uintptr(t.ID), out)
		d.then(func() error {
			if _, err := b.Result(get); err != nil {
				return fmt.Errorf("timer %d: %w", t.ID, err)
			}
			parasite.Into(b, out, &abi)
			t.Value = d.leftThen(t.Clock, abi.value.sec*1e9+abi.value.nsec)
			t.Interval = abi.interval.sec*1e9 + abi.interval.nsec
			d.Process.Timers = append(d.Process.Timers, t)
			return nil
		})
	}
	return nil
}

// clockOwner is the process or thread of a processor-time clock
// (MAKE_PROCESS_CPUCLOCK, include/linux/posix-timers_types.h); 0: the caller.
func clockOwner(clock int) int { return ^(clock >> 3) }

func (d *ProcessDump) hasThread(tid int) bool {
	for i := range d.Process.Threads {
		if d.Process.Threads[i].TID == tid {
			return true
		}
	}
	return false
}

// sigeventABI is struct sigevent (include/uapi/asm-generic/siginfo.h).
type sigeventABI struct {
	_      structs.HostLayout
	value  uint64
	signo  int32
	notify int32
	tid    int32
	_      [11]int32
}

// prTimerCreateRestoreIDs is PR_TIMER_CREATE_RESTORE_IDS (Linux 6.15): while it
// is on, timer_create takes the id that its result points to.
const prTimerCreateRestoreIDs = 77

const sigevThreadID = 4

// createTimers makes the POSIX timers with the ids that they had.
func createTimers(r *ProcessRestore) error {
	if len(r.Process.Timers) == 0 {
		return nil
	}
	on := r.batch()
	set := on.Call(unix.SYS_PRCTL, prTimerCreateRestoreIDs, 1, 0, 0, 0)
	if err := on.Run(r.Ctx); err != nil {
		return err
	}
	if _, err := on.Result(set); err != nil {
		return createTimersInTurn(r)
	}
	b := r.batch()
	for _, t := range r.Process.Timers {
		addTimerCreate(b, &t, uint64(t.ID))
	}
	b.Call(unix.SYS_PRCTL, prTimerCreateRestoreIDs, 0, 0, 0, 0)
	return b.RunAll(r.Ctx)
}

// addTimerCreate adds the call that makes a timer and returns where it leaves
// the timer's id; before, id stands there.
func addTimerCreate(b *parasite.Batch, t *image.Timer, id uint64) (out uintptr) {
	event := sigeventABI{value: t.SigVal, signo: int32(t.Signal), notify: int32(t.Notify)}
	if t.Notify&sigevThreadID != 0 {
		event.tid = int32(t.Thread)
	}
	out = parasite.Struct(b, &id)
	b.Call(unix.SYS_TIMER_CREATE, uintptr(t.Clock), parasite.Struct(b, &event), out)
	return out
}

// createTimersInTurn makes timers on a kernel that counts their ids up: those
// in between are made and deleted again.
func createTimersInTurn(r *ProcessRestore) error {
	const most = 1 << 16
	next := 0
	for _, t := range r.Process.Timers {
		if t.ID > most {
			return fmt.Errorf("timer %d: this kernel can only count up to its id: %w", t.ID, errors.ErrUnsupported)
		}
		for ; next <= t.ID; next++ {
			b := r.batch()
			out := addTimerCreate(b, &t, 0)
			if err := b.RunAll(r.Ctx); err != nil {
				return fmt.Errorf("timer %d: %w", t.ID, err)
			}
			id := int(uint32(uint64s(b.Read(out, 8))[0]))
			if id == t.ID {
				continue
			}
			drop := r.batch()
			drop.Call(unix.SYS_TIMER_DELETE, uintptr(id))
			if err := drop.RunAll(r.Ctx); err != nil {
				return fmt.Errorf("timer %d: %w", t.ID, err)
			}
			if id != next {
				return fmt.Errorf("timer %d: this kernel gave out id %d instead of %d", t.ID, id, next)
			}
		}
	}
	return nil
}

// armTimers sets all timers to what is left of them. Clocks that go on by
// themselves are given the time of expiry, so that a periodic timer keeps its
// beat and counts what it has missed; for others, passed nanoseconds have gone
// by since they were read.
func (r *ProcessRestore) armTimers(passed int64) error {
	b := r.batch()
	for _, t := range r.Process.IntervalTimers {
		var abi itimervalABI
		value := t.Value
		if t.Which == unix.ITIMER_REAL { // the others stand still with the process
			value -= passed
		}
		value = max(value, 1000) // zero would disarm it
		abi.value.sec, abi.value.usec = value/1e9, value%1e9/1e3
		abi.interval.sec, abi.interval.usec = t.Interval/1e9, t.Interval%1e9/1e3
		b.Call(unix.SYS_SETITIMER, uintptr(t.Which), parasite.Struct(b, &abi), 0)
	}
	for _, t := range r.Process.Timers {
		if t.Value == 0 {
			continue // disarmed
		}
		value, flags := r.expiry(t.Clock, t.Value, passed)
		var abi itimerspecABI
		abi.value.sec, abi.value.nsec = value/1e9, value%1e9
		abi.interval.sec, abi.interval.nsec = t.Interval/1e9, t.Interval%1e9
		b.Call(unix.SYS_TIMER_SETTIME, uintptr(t.ID), flags, parasite.Struct(b, &abi), 0)
	}
	return b.RunAll(r.Ctx)
}

// timerAbsolute is TIMER_ABSTIME, and TFD_TIMER_ABSTIME.
const timerAbsolute = 1

// leftThen is what was left of a timer, of which this much is left now, when the image's clocks
// were read: it must not expire too early for them. Nothing is left of one that is disarmed.
func (d *TreeDump) leftThen(clock int, left int64) int64 {
	if left == 0 || standsStill(clock) {
		return left
	}
	return left + time.Since(d.clocksRead).Nanoseconds()
}

// standsStill reports a clock that does so with its process or thread: one of processor time.
func standsStill(clock int) bool {
	switch clock {
	case unix.CLOCK_MONOTONIC, unix.CLOCK_BOOTTIME, unix.CLOCK_BOOTTIME_ALARM, unix.CLOCK_REALTIME, unix.CLOCK_REALTIME_ALARM, unix.CLOCK_TAI:
		return false
	}
	return true
}

// expiry is the value and the flags with which a timer is set that had left
// nanoseconds to go.
func (r *ProcessRestore) expiry(clock int, left, passed int64) (int64, uintptr) {
	switch {
	case standsStill(clock):
		return left, 0
	case clock == unix.CLOCK_MONOTONIC:
		return r.Image.Clocks.Monotonic + left, timerAbsolute
	case clock == unix.CLOCK_BOOTTIME, clock == unix.CLOCK_BOOTTIME_ALARM:
		return r.Image.Clocks.Boottime + left, timerAbsolute
	}
	return max(left-passed, 1), 0 // the clock of the day
}
