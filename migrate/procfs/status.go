package procfs

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Status is what we use of /proc/PID/status or /proc/PID/task/TID/status.
type Status struct {
	Name       string
	State      byte
	TGID       int
	PID        int
	PPID       int
	TracerPID  int
	NSPIDs     []int // in each PID namespace from the reader's inwards
	UIDs       [4]uint32
	GIDs       [4]uint32
	Groups     []uint32
	Umask      int
	Threads    int
	RSSBytes   uint64
	ShmemBytes uint64 // of it, of shared memory and tmpfs
	SwapBytes  uint64
	NoNewPrivs bool
	Seccomp    int // 0: off, 1: strict, 2: filters

	CapInh, CapPrm, CapEff, CapBnd, CapAmb uint64
	SigPnd, ShdPnd, SigBlk, SigIgn, SigCgt uint64
	THPEnabled                             bool
}

// ParseStatus parses /proc/PID/status.
func ParseStatus(data []byte) (Status, error) {
	s := Status{THPEnabled: true}
	var errs []error
	number := func(text string, base, bits int) uint64 {
		text, _, _ = strings.Cut(text, " ") // a unit
		n, err := strconv.ParseUint(text, base, bits)
		if err != nil {
			errs = append(errs, err)
		}
		return n
	}
	list := func(text string) []uint32 {
		var all []uint32
		for word := range strings.FieldsSeq(text) {
			all = append(all, uint32(number(word, 10, 32)))
		}
		return all
	}
	for line := range strings.Lines(string(data)) {
		name, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
		if !ok {
			return Status{}, fmt.Errorf("parsing status: line %q", line)
		}
		value = strings.TrimSpace(value)
		switch name {
		case "Name":
			s.Name = value
		case "State":
			if value == "" {
				return Status{}, errors.New("parsing status: no state")
			}
			s.State = value[0]
		case "Tgid":
			s.TGID = int(number(value, 10, 31))
		case "Pid":
			s.PID = int(number(value, 10, 31))
		case "PPid":
			s.PPID = int(number(value, 10, 31))
		case "TracerPid":
			s.TracerPID = int(number(value, 10, 31))
		case "NSpid":
			for _, n := range list(value) {
				s.NSPIDs = append(s.NSPIDs, int(n))
			}
		case "Uid":
			copy(s.UIDs[:], list(value))
		case "Gid":
			copy(s.GIDs[:], list(value))
		case "Groups":
			s.Groups = list(value)
		case "Umask":
			s.Umask = int(number(value, 8, 31))
		case "Threads":
			s.Threads = int(number(value, 10, 31))
		case "VmRSS":
			s.RSSBytes = number(value, 10, 53) << 10
		case "RssShmem":
			s.ShmemBytes = number(value, 10, 53) << 10
		case "VmSwap":
			s.SwapBytes = number(value, 10, 53) << 10
		case "NoNewPrivs":
			s.NoNewPrivs = value == "1"
		case "Seccomp":
			s.Seccomp = int(number(value, 10, 31))
		case "THP_enabled":
			s.THPEnabled = value == "1"
		case "CapInh":
			s.CapInh = number(value, 16, 64)
		case "CapPrm":
			s.CapPrm = number(value, 16, 64)
		case "CapEff":
			s.CapEff = number(value, 16, 64)
		case "CapBnd":
			s.CapBnd = number(value, 16, 64)
		case "CapAmb":
			s.CapAmb = number(value, 16, 64)
		case "SigPnd":
			s.SigPnd = number(value, 16, 64)
		case "ShdPnd":
			s.ShdPnd = number(value, 16, 64)
		case "SigBlk":
			s.SigBlk = number(value, 16, 64)
		case "SigIgn":
			s.SigIgn = number(value, 16, 64)
		case "SigCgt":
			s.SigCgt = number(value, 16, 64)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return Status{}, fmt.Errorf("parsing status: %w", err)
	}
	return s, nil
}
