package parasitetest

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// steady runs threads in calls that the kernel itself restarts.
func steady(ready func(), stop *atomic.Bool) error {
	return runThreads(ready, stop, spin, spin, sleepRelative, sleepAbsolute, waitPoll, waitPipe, waitFutex)
}

// busy runs one thread for each way of being disturbed.
func busy(ready func(), stop *atomic.Bool) error {
	return runThreads(ready, stop, spin, spin, sleepRelative, sleepAbsolute, waitPoll, waitPipe, waitFutex,
		waitEpoll, waitEpoll, waitSignal, waitSemaphore)
}

func runThreads(ready func(), stop *atomic.Bool, threads ...func(*atomic.Bool) error) error {
	runtime.GOMAXPROCS(len(threads) + 2) // all of them really run at the same time
	errs := make(chan error, len(threads))
	var wg, started sync.WaitGroup
	started.Add(len(threads))
	for _, run := range threads {
		wg.Go(func() {
			runtime.LockOSThread()
			started.Done()
			if err := run(stop); err != nil {
				errs <- err
			}
		})
	}
	started.Wait()
	ready()
	wg.Wait()
	close(errs)
	return <-errs
}

func spin(stop *atomic.Bool) error {
	for !stop.Load() {
		if wrong := holdRegisters(200_000); wrong != 0 {
			return fmt.Errorf("register pattern %d has changed", wrong)
		}
		runtime.Gosched() // assembly is never preempted
	}
	return nil
}

const nap = 20 * time.Millisecond

func sleepRelative(stop *atomic.Bool) error {
	for !stop.Load() {
		start := time.Now()
		request := unix.NsecToTimespec(int64(nap))
		if err := unix.Nanosleep(&request, nil); err != nil {
			return fmt.Errorf("nanosleep: %w", err)
		}
		if slept := time.Since(start); slept < nap {
			return fmt.Errorf("nanosleep(%v) took %v", nap, slept)
		}
	}
	return nil
}

func sleepAbsolute(stop *atomic.Bool) error {
	for !stop.Load() {
		var now unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
			return err
		}
		until := unix.NsecToTimespec(now.Nano() + int64(nap))
		if err := unix.ClockNanosleep(unix.CLOCK_MONOTONIC, unix.TIMER_ABSTIME, &until, nil); err != nil {
			return fmt.Errorf("clock_nanosleep: %w", err)
		}
	}
	return nil
}

func waitEpoll(stop *atomic.Bool) error {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	events := make([]unix.EpollEvent, 1)
	for !stop.Load() {
		if n, err := unix.EpollWait(fd, events, int(nap.Milliseconds())); err != nil || n != 0 {
			return fmt.Errorf("epoll_wait: %d events, %w", n, err)
		}
	}
	return nil
}

func waitPoll(stop *atomic.Bool) error {
	for !stop.Load() {
		if n, err := unix.Poll(nil, int(nap.Milliseconds())); err != nil || n != 0 {
			return fmt.Errorf("poll: %d, %w", n, err)
		}
	}
	return nil
}

func waitSignal(stop *atomic.Bool) error {
	set := uint64(1) << (unix.SIGUSR2 - 1)
	for !stop.Load() {
		if err := rtSigtimedwait(set, nap); !errors.Is(err, unix.EAGAIN) {
			return fmt.Errorf("rt_sigtimedwait: %w", err)
		}
	}
	return nil
}

// waitPipe reads what another thread writes, byte by byte.
func waitPipe(stop *atomic.Bool) error {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return err
	}
	defer unix.Close(fds[0])
	go func() {
		defer unix.Close(fds[1])
		ticker := time.NewTicker(nap)
		defer ticker.Stop()
		for n := byte(0); !stop.Load(); n++ {
			<-ticker.C
			if _, err := unix.Write(fds[1], []byte{n}); err != nil {
				fmt.Fprintln(os.Stderr, "writing to the pipe:", err)
			}
		}
	}()
	for want := byte(0); ; want++ {
		var got [1]byte
		switch n, err := unix.Read(fds[0], got[:]); {
		case err != nil:
			return fmt.Errorf("reading the pipe: %w", err)
		case n == 0:
			return nil
		case got[0] != want:
			return fmt.Errorf("read %d from the pipe instead of %d", got[0], want)
		}
	}
}

func waitFutex(stop *atomic.Bool) error {
	var word uint32
	for !stop.Load() {
		if err := futexWait(&word, nap); !errors.Is(err, unix.ETIMEDOUT) {
			return fmt.Errorf("futex: %w", err)
		}
	}
	return nil
}

func waitSemaphore(stop *atomic.Bool) error {
	id, err := newSemaphore()
	if err != nil {
		return fmt.Errorf("semget: %w", err)
	}
	defer removeSemaphore(id)
	for !stop.Load() {
		if err := semaphoreWait(id, nap); !errors.Is(err, unix.EAGAIN) {
			return fmt.Errorf("semtimedop: %w", err)
		}
	}
	return nil
}
