package resource

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/migrate/procfs"
	"github.com/pagurus-project/pagurus/parasite"
)

// tfdIOCSetTicks is TFD_IOC_SET_TICKS (include/uapi/linux/timerfd.h).
const tfdIOCSetTicks = 0x40085400

// timerFile: timerfd_create(2).
var timerFile = fileKind{
	dump: func(d *ProcessDump, o *openFile, f *image.File) (err error) {
		if f.Timer, err = d.dumpTimerFD(o); err == nil && isDisarmed(f.Timer) {
			// Or it is due, and has expired by then.
			before := f.Timer
			d.then(func() error {
				t, err := d.dumpTimerFD(o)
				if err != nil {
					return err
				}
				if isDisarmed(t) && t.Ticks > before.Ticks {
					t.Value = 1 // it is due again
				}
				d.image.Files[o.index].Timer = t
				return nil
			})
		}
		return err
	},
	open: func(_ *TreeRestore, f *image.File) (int, error) {
		fd, err := unix.TimerfdCreate(f.Timer.Clock, unix.TFD_CLOEXEC)
		if err != nil {
			return 0, err
		}
		return fd, setStatusFlags(fd, f.Flags)
	},
	connect: func(r *ProcessRestore, f *image.File, fd int) error {
		if err := r.armTimerFD(f.Timer, fd); err != nil || f.Timer.Ticks == 0 {
			return err
		}
		own, err := borrow(r.Process.PID, fd)
		if err != nil {
			return err
		}
		defer unix.Close(own)
		ticks := f.Timer.Ticks
		if err := ioctlSet(own, tfdIOCSetTicks, &ticks); err != nil {
			return fmt.Errorf("setting the ticks of a timerfd: %w", err)
		}
		return nil
	},
}

// dumpTimerFD reads one, as of when the clocks were read.
func (d *ProcessDump) dumpTimerFD(o *openFile) (*image.TimerFD, error) {
	fd, err := o.borrow()
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	t, err := readTimerFD(fd, func() (*procfs.FDInfo, error) {
		err := o.look()
		return &o.info, err
	})
	if err != nil {
		return nil, err
	}
	t.Value = d.leftThen(t.Clock, t.Value)
	return t, nil
}

// readTimerFD reads one that goes on. A periodic timer that has expired stands still until
// somebody asks (timerfd_get_remaining, fs/timerfd.c). Asking counts what it has missed among
// its ticks, which are in fdinfo alone: it must not expire between the two.
func readTimerFD(fd int, look func() (*procfs.FDInfo, error)) (*image.TimerFD, error) {
	const tries = 10 // a period may be shorter than what this takes
	for try := 1; ; try++ {
		before, err := timeOf(fd)
		if err != nil {
			return nil, err
		}
		info, err := look()
		if err != nil {
			return nil, err
		}
		t, err := parseTimerFD(info)
		if err != nil {
			return nil, err
		}
		after, err := timeOf(fd)
		if err != nil {
			return nil, err
		}
		first, last := before.Value.Nano(), after.Value.Nano()
		t.Value, t.Interval = max(first, last), before.Interval.Nano()
		if last == first || 0 < last && last < first || try == tries {
			return t, nil
		}
	}
}

// timeOf asks a timer what is left of it, which lets it go on.
func timeOf(fd int) (left unix.ItimerSpec, err error) {
	if err := unix.TimerfdGettime(fd, &left); err != nil {
		return left, fmt.Errorf("asking for its time: %w", err)
	}
	return left, nil
}

// isDisarmed reports a timer of which nothing is left, as of one that is due, too, until the
// late interrupt has come.
func isDisarmed(t *image.TimerFD) bool { return t.Value == 0 && (t.Ticks == 0 || t.Interval != 0) }

// armTimerFD sets the timer, in the shell: its time namespace counts.
func (r *ProcessRestore) armTimerFD(t *image.TimerFD, fd int) error {
	if t.Value == 0 {
		return nil
	}
	passed, err := r.passed()
	if err != nil {
		return err
	}
	value, flags := r.expiry(t.Clock, t.Value, passed)
	var abi itimerspecABI
	abi.value.sec, abi.value.nsec = value/1e9, value%1e9
	abi.interval.sec, abi.interval.nsec = t.Interval/1e9, t.Interval%1e9
	b := r.batch()
	b.Call(unix.SYS_TIMERFD_SETTIME, uintptr(fd), flags|uintptr(t.Flags&unix.TFD_TIMER_CANCEL_ON_SET), parasite.Struct(b, &abi), 0)
	return b.RunAll(r.Ctx)
}

// parseTimerFD reads
//
//	clockid: 0
//	ticks: 0
//	settime flags: 01
//
// The times are asked for elsewhere.
func parseTimerFD(info *procfs.FDInfo) (*image.TimerFD, error) {
	var t image.TimerFD
	var errs []error
	number := func(name string, base int) int64 {
		text, _ := info.Value(name)
		n, err := strconv.ParseInt(strings.TrimPrefix(text, "flags: "), base, 64)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s in fdinfo: %w", name, err))
		}
		return n
	}
	t.Clock = int(number("clockid", 10))
	t.Ticks = uint64(number("ticks", 10))
	t.Flags = int(number("settime", 8))
	return &t, errors.Join(errs...)
}

// signalFile: signalfd(2). It has no state but its mask: what is pending is
// pending for the process.
var signalFile = fileKind{
	dump: func(_ *ProcessDump, o *openFile, f *image.File) error {
		text, ok := o.info.Value("sigmask")
		if !ok {
			return errors.New("no mask in fdinfo")
		}
		var err error
		f.SignalMask, err = strconv.ParseUint(text, 16, 64)
		return err
	},
	open: func(_ *TreeRestore, f *image.File) (int, error) {
		var set unix.Sigset_t
		set.Val[0] = f.SignalMask
		fd, err := unix.Signalfd(-1, &set, unix.SFD_CLOEXEC)
		if err != nil {
			return 0, err
		}
		return fd, setStatusFlags(fd, f.Flags)
	},
}
