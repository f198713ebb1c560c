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
	dump: func(_ *ProcessDump, o *openFile, f *image.File) error {
		fd, err := o.borrow()
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		// A periodic timer that has expired stands still until somebody asks
		// (timerfd_get_remaining, fs/timerfd.c). Asking counts what it has missed
		// among its ticks, which are in fdinfo alone.
		var now unix.ItimerSpec
		if err := unix.TimerfdGettime(fd, &now); err != nil {
			return fmt.Errorf("asking for its time: %w", err)
		}
		if err := o.look(); err != nil {
			return err
		}
		if f.Timer, err = parseTimerFD(&o.info); err != nil {
			return err
		}
		f.Timer.Value, f.Timer.Interval = now.Value.Nano(), now.Interval.Nano()
		return nil
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
