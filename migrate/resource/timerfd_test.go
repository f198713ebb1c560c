package resource

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/migrate/procfs"
)

// A timer that is due looks like one that is disarmed, until it has expired: none may be taken
// for it, and one that expires once may not do so twice.
func TestTimerThatIsDue(t *testing.T) {
	const period = 50 * time.Microsecond
	for _, tt := range []struct {
		name     string
		interval time.Duration
	}{{"periodic", period}, {"once", 0}} {
		t.Run(tt.name, func(t *testing.T) {
			fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd)
			for range 3000 {
				setTimerFD(t, fd, period, tt.interval)
				seen := time.Now()
				d := &ProcessDump{TreeDump: &TreeDump{clocksRead: seen, image: &image.Image{Files: make([]image.File, 1)}}}
				o := &openFile{pid: unix.Getpid(), fd: fd}
				f := &d.image.Files[0]
				for time.Since(seen) < period-10*time.Microsecond {
				}
				if err := timerFile.dump(d, o, f); err != nil {
					t.Fatal(err)
				}
				if isDisarmed(f.Timer) {
					awaitTick(t, o, f.Timer.Ticks)
				}
				if err := d.runAfter(); err != nil {
					t.Fatal(err)
				}
				switch at := *f.Timer; {
				case at.Value == 0 && (at.Ticks == 0 || at.Interval != 0):
					t.Fatalf("%+v: the timer is lost", at)
				case at.Interval == 0 && at.Value != 0 && at.Ticks != 0:
					t.Fatalf("%+v: it would expire twice", at)
				}
			}
		})
	}
}

// awaitTick waits for the interrupt that is late.
func awaitTick(t *testing.T, o *openFile, ticks uint64) {
	t.Helper()
	for begun := time.Now(); ; {
		info, err := procfs.Process{PID: o.pid}.FDInfo(o.fd)
		if err != nil {
			t.Fatal(err)
		}
		switch now, err := parseTimerFD(&info); {
		case err != nil:
			t.Fatal(err)
		case now.Ticks > ticks:
			return
		case time.Since(begun) > 10*time.Second:
			t.Fatalf("%+v: it does not expire", now)
		}
	}
}

func setTimerFD(t *testing.T, fd int, value, interval time.Duration) {
	t.Helper()
	ts := unix.ItimerSpec{Value: unix.NsecToTimespec(int64(value)), Interval: unix.NsecToTimespec(int64(interval))}
	if err := unix.TimerfdSettime(fd, 0, &ts, nil); err != nil {
		t.Fatal(err)
	}
}

// What is left of a timer counts from when the clocks were read.
func TestTimerCountsFromTheClocks(t *testing.T) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	before := time.Now()
	setTimerFD(t, fd, time.Hour, 0)
	after := time.Now()
	read := after.Add(-time.Minute) // the clocks
	timer, err := (&ProcessDump{TreeDump: &TreeDump{clocksRead: read}}).dumpTimerFD(&openFile{pid: unix.Getpid(), fd: fd})
	if err != nil {
		t.Fatal(err)
	}
	then, now := read.Add(time.Duration(timer.Value)), time.Now()
	if early := before.Add(time.Hour).Sub(then); early > 0 {
		t.Errorf("it would expire %v too early", early)
	}
	if late := then.Sub(now.Add(time.Hour)); late > 0 {
		t.Errorf("it would expire %v too late", late)
	}
}
