package hold

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// settle waits until every processor is done with packets that it took in before
// now. While a processor is in the middle of one it runs no thread, but for kernels
// with PREEMPT_RT: so a thread of ours visits all of them. Where that cannot be, the
// kernel is asked to wait (membarrier(2)), which takes tens of milliseconds.
func settle() {
	// A thread that has a processor to itself keeps ours from it.
	visited := make(chan bool, 1)
	go func() { visited <- visitAll() }()
	ok := false
	select {
	case ok = <-visited:
	case <-time.After(visitAtMost):
	}
	if !ok {
		const global = 1 // MEMBARRIER_CMD_GLOBAL (include/uapi/linux/membarrier.h)
		_, _, _ = unix.Syscall(unix.SYS_MEMBARRIER, global, 0, 0)
	}
}

const visitAtMost = 100 * time.Millisecond

// visitAll runs on each processor for a moment, and reports whether it could.
func visitAll() bool {
	if realtime, err := os.ReadFile("/sys/kernel/realtime"); err == nil && bytes.HasPrefix(realtime, []byte("1")) {
		return false
	}
	online, err := processors()
	if err != nil {
		return false
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return false
	}
	defer func() { _ = unix.SchedSetaffinity(0, &before) }() // as it was a moment ago
	for _, cpu := range online {
		var one unix.CPUSet
		one.Set(cpu)
		if err := unix.SchedSetaffinity(0, &one); err != nil {
			return false
		}
	}
	return true
}

// processors are those that the kernel runs on, which it lists as "0-3,8"
// (Documentation/admin-guide/cputopology.rst).
func processors() ([]int, error) {
	text, err := os.ReadFile("/sys/devices/system/cpu/online")
	if err != nil {
		return nil, err
	}
	var all []int
	for part := range strings.SplitSeq(strings.TrimSpace(string(text)), ",") {
		var first, last int
		n, err := fmt.Sscanf(part, "%d-%d", &first, &last)
		if n == 0 {
			return nil, fmt.Errorf("a list of processors with %q: %w", part, err)
		}
		for cpu := first; cpu <= max(first, last); cpu++ {
			all = append(all, cpu)
		}
	}
	return all, nil
}
