package resource

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate/image"
)

// readClocks notes what time it is for the tree.
func (d *TreeDump) readClocks(pid int) error {
	d.clocksRead = time.Now() // before: no time-out may end too early for it
	clocks, err := ClocksOf(pid)
	if err != nil {
		return err
	}
	d.image.Clocks = clocks
	return nil
}

// ClocksOf reads the clocks as process pid sees them (time_namespaces(7)).
func ClocksOf(pid int) (image.Clocks, error) {
	theirs, err := readOffsets(pid)
	if err != nil {
		return image.Clocks{}, err
	}
	ours, err := readOffsets(os.Getpid())
	if err != nil {
		return image.Clocks{}, err
	}
	var now [3]unix.Timespec
	for i, clock := range []int32{unix.CLOCK_REALTIME, unix.CLOCK_MONOTONIC, unix.CLOCK_BOOTTIME} {
		if err := unix.ClockGettime(clock, &now[i]); err != nil {
			return image.Clocks{}, err
		}
	}
	return image.Clocks{
		Realtime:  now[0].Nano(),
		Monotonic: now[1].Nano() - ours.monotonic + theirs.monotonic,
		Boottime:  now[2].Nano() - ours.boottime + theirs.boottime,
	}, nil
}

// clockOffsets are what a time namespace adds to the clocks of the initial
// one, in nanoseconds.
type clockOffsets struct{ monotonic, boottime int64 }

// readOffsets reads /proc/PID/timens_offsets: those of the namespace for the
// process's children, which is its own unless it has called unshare(2).
func readOffsets(pid int) (clockOffsets, error) {
	path := fmt.Sprintf("/proc/%d/timens_offsets", pid)
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err != nil {
			return clockOffsets{}, err
		}
		return clockOffsets{}, nil // a kernel without time namespaces
	}
	if err != nil {
		return clockOffsets{}, err
	}
	offsets, err := parseOffsets(string(text))
	if err != nil {
		return offsets, fmt.Errorf("reading %s: %w", path, err)
	}
	return offsets, nil
}

// parseOffsets parses lines like "monotonic   1000   0": seconds, nanoseconds.
func parseOffsets(text string) (clockOffsets, error) {
	var o clockOffsets
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) != 3 {
			return o, fmt.Errorf("line %q", line)
		}
		seconds, err1 := strconv.ParseInt(words[1], 10, 64)
		nanoseconds, err2 := strconv.ParseInt(words[2], 10, 64)
		if err := errors.Join(err1, err2); err != nil {
			return o, fmt.Errorf("line %q: %w", line, err)
		}
		const most = 1 << 33 // some 270 years
		if max(seconds, -seconds) > most || nanoseconds < 0 || nanoseconds >= 1e9 {
			return o, fmt.Errorf("line %q: an offset that no clock can have", line)
		}
		switch words[0] {
		case "monotonic":
			o.monotonic = seconds*1e9 + nanoseconds
		case "boottime":
			o.boottime = seconds*1e9 + nanoseconds
		}
	}
	return o, nil
}

// OffsetsFor is what to write into timens_offsets of a process whose children
// are to see the clocks as wanted shows them at this moment.
func OffsetsFor(wanted image.Clocks) (string, error) {
	ours, err := readOffsets(os.Getpid())
	if err != nil {
		return "", err
	}
	now, err := ClocksOf(os.Getpid())
	if err != nil {
		return "", err
	}
	line := func(clock string, offset int64) string {
		seconds, nanoseconds := offset/1e9, offset%1e9
		if nanoseconds < 0 {
			seconds, nanoseconds = seconds-1, nanoseconds+1e9
		}
		return fmt.Sprintf("%s %d %d\n", clock, seconds, nanoseconds)
	}
	return line("monotonic", ours.monotonic+wanted.Monotonic-now.Monotonic) +
		line("boottime", ours.boottime+wanted.Boottime-now.Boottime), nil
}
