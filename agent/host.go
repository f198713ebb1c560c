package agent

import (
	"bytes"
	"fmt"
	"math"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate/procfs"
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
	memory, err := procfs.ReadMeminfo()
	if err != nil {
		return nil, err
	}
	resp.MemoryBytes, resp.FreeBytes = memory.Total, memory.Available
	load, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return nil, err
	}
	if resp.Load1, err = parseLoadavg(load); err != nil {
		return nil, err
	}
	return resp, nil
}

// parseLoadavg reads the load of the last minute from /proc/loadavg.
func parseLoadavg(data []byte) (float64, error) {
	word, _, _ := strings.Cut(string(data), " ")
	load, err := strconv.ParseFloat(word, 64)
	if err == nil && !(load >= 0 && load <= math.MaxUint32) {
		err = strconv.ErrRange
	}
	if err != nil {
		return 0, fmt.Errorf("parsing loadavg: %w", err)
	}
	return load, nil
}
