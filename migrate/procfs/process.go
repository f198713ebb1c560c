package procfs

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrGone says that the process has exited.
var ErrGone = errors.New("process is gone")

// A Process is a process seen through /proc.
type Process struct{ PID int }

// Path is the path of one of the process's files.
func (p Process) Path(name string) string {
	return "/proc/" + strconv.Itoa(p.PID) + "/" + name
}

// Read reads one of the process's files.
func (p Process) Read(name string) ([]byte, error) {
	data, err := readFile(p.Path(name))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		if _, statErr := os.Stat(p.Path("")); statErr != nil {
			return nil, fmt.Errorf("reading %s: %w", p.Path(name), ErrGone)
		}
	}
	return data, err
}

// readFile is os.ReadFile without what a file of /proc has no use for, such as
// registering it with the runtime's poller: that takes as long as the reading.
func readFile(path string) ([]byte, error) {
	fd, err := ignoringEINTR(func() (int, error) { return unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0) })
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	data := make([]byte, 0, 4096)
	for {
		n, err := ignoringEINTR(func() (int, error) { return unix.Read(fd, data[len(data):cap(data)]) })
		if err != nil {
			return nil, &os.PathError{Op: "read", Path: path, Err: err}
		}
		if n == 0 {
			return data, nil
		}
		data = data[:len(data)+n]
		data = slices.Grow(data, 4096)
	}
}

func ignoringEINTR(f func() (int, error)) (int, error) {
	for {
		if n, err := f(); !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// Link reads one of the process's symbolic links.
func (p Process) Link(name string) (string, error) {
	target, err := os.Readlink(p.Path(name))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		if _, statErr := os.Stat(p.Path("")); statErr != nil {
			return "", fmt.Errorf("reading %s: %w", p.Path(name), ErrGone)
		}
	}
	return target, err
}

func read[T any](p Process, name string, parse func([]byte) (T, error)) (T, error) {
	data, err := p.Read(name)
	if err != nil {
		var none T
		return none, err
	}
	v, err := parse(data)
	if err != nil {
		return v, fmt.Errorf("reading %s: %w", p.Path(name), err)
	}
	return v, nil
}

// Maps reads /proc/PID/maps.
//
// The kernel writes the file in pieces. What a running process does to its
// mappings between two of them may show as an overlap: then it is read again.
func (p Process) Maps() ([]VMA, error) {
	for tries := 1; ; tries++ {
		vmas, err := read(p, "maps", ParseMaps)
		if !errors.Is(err, errOverlap) || tries == mapsTries {
			return vmas, err
		}
	}
}

// mapsTries bounds how often an inconsistent list is read again.
const mapsTries = 100

// Smaps reads the flags of all mappings. The kernel walks the page tables for
// it: about 10 ms for each GiB in memory.
func (p Process) Smaps() (map[uint64]VMFlags, error) { return read(p, "smaps", ParseSmaps) }

// Status reads /proc/PID/status.
func (p Process) Status() (Status, error) { return read(p, "status", ParseStatus) }

// ThreadStatus reads /proc/PID/task/TID/status.
func (p Process) ThreadStatus(tid int) (Status, error) {
	return read(p, "task/"+strconv.Itoa(tid)+"/status", ParseStatus)
}

// Stat reads /proc/PID/stat.
func (p Process) Stat() (Stat, error) { return read(p, "stat", ParseStat) }

// Limits reads /proc/PID/limits.
func (p Process) Limits() ([LimitCount]Limit, error) { return read(p, "limits", ParseLimits) }

// Timers reads /proc/PID/timers.
func (p Process) Timers() ([]Timer, error) { return read(p, "timers", ParseTimers) }

// FDInfo reads /proc/PID/fdinfo/FD.
func (p Process) FDInfo(fd int) (FDInfo, error) {
	return read(p, "fdinfo/"+strconv.Itoa(fd), ParseFDInfo)
}

// Number reads a file that holds one number, in base 10 or as base says.
func (p Process) Number(name string, base int) (int64, error) {
	return read(p, name, func(data []byte) (int64, error) {
		return strconv.ParseInt(strings.TrimSpace(string(data)), base, 64)
	})
}

// FDs lists the process's descriptors in ascending order.
func (p Process) FDs() ([]int, error) { return p.numbers("fd") }

// Threads lists the process's threads in ascending order.
func (p Process) Threads() ([]int, error) { return p.numbers("task") }

func (p Process) numbers(name string) ([]int, error) {
	dir, err := os.Open(p.Path(name))
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("reading %s: %w", p.Path(name), ErrGone)
		}
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	all := make([]int, len(names))
	for i, name := range names {
		if all[i], err = strconv.Atoi(name); err != nil {
			return nil, fmt.Errorf("reading %s: %w", dir.Name(), err)
		}
	}
	slices.Sort(all)
	return all, nil
}

// Children lists the processes whose parent is p.
func (p Process) Children() ([]int, error) {
	tids, err := p.Threads()
	if err != nil {
		return nil, err
	}
	var all []int
	for _, tid := range tids {
		data, err := p.Read("task/" + strconv.Itoa(tid) + "/children")
		if errors.Is(err, os.ErrNotExist) {
			continue // the thread is gone, and its children are another's now
		}
		if err != nil {
			return nil, err
		}
		for word := range strings.FieldsSeq(string(data)) {
			pid, err := strconv.Atoi(word)
			if err != nil {
				return nil, fmt.Errorf("reading children of %d: %w", tid, err)
			}
			all = append(all, pid)
		}
	}
	return all, nil
}

// All lists the processes of this PID namespace.
func All() ([]int, error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var all []int
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			all = append(all, pid)
		}
	}
	slices.Sort(all)
	return all, nil
}

// CutDeleted takes the mark of a deleted file off a path.
func CutDeleted(path string) (string, bool) { return strings.CutSuffix(path, deletedSuffix) }
