package procfs

import (
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A sleeping thread's time-out is found whatever the call is, and none where
// there is none.
func TestSleepReader(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	reader, err := NewSleepReader()
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	const long = 100 * time.Second
	seconds := unix.NsecToTimespec(long.Nanoseconds())
	var word uint32
	for _, test := range []struct {
		name  string
		timed bool
		call  func(fd int)
	}{
		{"nanosleep", true, func(int) { sleepIn(unix.SYS_NANOSLEEP, &seconds, 0) }},
		{"clock_nanosleep until", true, func(int) {
			var until unix.Timespec
			if unix.ClockGettime(unix.CLOCK_MONOTONIC, &until) == nil {
				until.Sec += int64(long / time.Second)
				_ = unix.ClockNanosleep(unix.CLOCK_MONOTONIC, unix.TIMER_ABSTIME, &until, nil)
			}
		}},
		{"poll", true, func(fd int) {
			_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(long/time.Millisecond))
		}},
		{"poll for ever", false, func(fd int) {
			_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
		}},
		{"epoll_wait", true, func(fd int) { sleepInEpoll(fd, int(long/time.Millisecond)) }},
		{"epoll_wait for ever", false, func(fd int) { sleepInEpoll(fd, -1) }},
		{"ppoll", true, func(fd int) {
			_, _ = unix.Ppoll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, &seconds, nil)
		}},
		{"futex", true, func(int) { waitForWord(&word, &seconds) }},
		{"read", false, func(fd int) { _, _ = unix.Read(fd, make([]byte, 8)) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { unix.Close(fd) })
			tids := make(chan int)
			start := time.Now()
			// The goroutine keeps its thread and ends with the test binary: not
			// all of these calls can be woken.
			go func() {
				runtime.LockOSThread()
				tids <- unix.Gettid()
				test.call(fd)
			}()
			tid := <-tids
			for deadline := time.Now().Add(5 * time.Second); ; runtime.Gosched() {
				sleeps, err := reader.Sleeps(Process{os.Getpid()})
				if err != nil {
					t.Fatal(err)
				}
				s, sleeping := sleeps[tid]
				left := s.Until.Sub(start)
				// The thread may sleep in the handing over of its id before.
				if sleeping && s.Switches > 0 && s.Timed == test.timed && (!s.Timed || left >= long && left < long+5*time.Second) {
					return
				}
				if time.Now().After(deadline) {
					t.Fatalf("asleep: %v, %+v, which ends after %v", sleeping, s, left)
				}
			}
		})
	}
}

// A process that is gone has no threads.
func TestSleepReaderOfNobody(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	reader, err := NewSleepReader()
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	const nobody = 1<<22 - 1 // above what PIDs are by default
	if sleeps, err := reader.Sleeps(Process{nobody}); err == nil {
		t.Errorf("%v", sleeps)
	}
}
