package agent

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	migratev1 "github.com/pagurus-project/pagurus/proto/migrate/v1"
)

// bootClock is CLOCK_BOOTTIME in nanoseconds: it goes on while no agent runs,
// and while the machine sleeps.
func bootClock() (int64, error) {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return 0, fmt.Errorf("reading the boot clock: %w", err)
	}
	return now.Nano(), nil
}

// describe tells what this machine is and has at present.
func describe() (*migratev1.DescribeResponse, error) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return nil, fmt.Errorf("asking for the kernel's name: %w", err)
	}
	resp := &migratev1.DescribeResponse{
		Kernel: string(name.Release[:bytes.IndexByte(name.Release[:], 0)]), Cpus: uint32(runtime.NumCPU()),
	}
	memory, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return nil, err
	}
	if resp.MemoryBytes, resp.FreeBytes, err = parseMeminfo(memory); err != nil {
		return nil, err
	}
	load, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return nil, err
	}
	if resp.Load1, err = parseLoadavg(load); err != nil {
		return nil, err
	}
	return resp, nil
}

// parseMeminfo reads the memory there is, and what programs could still get of
// it, in bytes, from /proc/meminfo.
func parseMeminfo(data []byte) (total, available uint64, err error) {
	found := 0
	for line := range strings.Lines(string(data)) {
		name, value, _ := strings.Cut(line, ":")
		var to *uint64
		switch name {
		case "MemTotal":
			to = &total
		case "MemAvailable":
			to = &available
		default:
			continue
		}
		kib, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 53)
		if err != nil {
			return 0, 0, fmt.Errorf("parsing meminfo: %s: %w", name, err)
		}
		*to = kib << 10
		found++
	}
	if found != 2 {
		return 0, 0, fmt.Errorf("parsing meminfo: %d of MemTotal and MemAvailable", found)
	}
	return total, available, nil
}

// parseLoadavg reads the load of the last minute from /proc/loadavg.
func parseLoadavg(data []byte) (float64, error) {
	word, _, _ := strings.Cut(string(data), " ")
	load, err := strconv.ParseFloat(word, 64)
	if err != nil {
		return 0, fmt.Errorf("parsing loadavg: %w", err)
	}
	return load, nil
}
