package procfs

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Limit is one resource limit, soft and hard; math.MaxUint64 is unlimited.
type Limit struct{ Soft, Hard uint64 }

// LimitCount is how many kinds of limits there are (RLIM_NLIMITS).
const LimitCount = 16

// limitNames are the names in /proc/PID/limits by RLIMIT_ number
// (lnames, fs/proc/base.c).
var limitNames = [LimitCount]string{
	unix.RLIMIT_CPU:        "Max cpu time",
	unix.RLIMIT_FSIZE:      "Max file size",
	unix.RLIMIT_DATA:       "Max data size",
	unix.RLIMIT_STACK:      "Max stack size",
	unix.RLIMIT_CORE:       "Max core file size",
	unix.RLIMIT_RSS:        "Max resident set",
	unix.RLIMIT_NPROC:      "Max processes",
	unix.RLIMIT_NOFILE:     "Max open files",
	unix.RLIMIT_MEMLOCK:    "Max locked memory",
	unix.RLIMIT_AS:         "Max address space",
	unix.RLIMIT_LOCKS:      "Max file locks",
	unix.RLIMIT_SIGPENDING: "Max pending signals",
	unix.RLIMIT_MSGQUEUE:   "Max msgqueue size",
	unix.RLIMIT_NICE:       "Max nice priority",
	unix.RLIMIT_RTPRIO:     "Max realtime priority",
	unix.RLIMIT_RTTIME:     "Max realtime timeout",
}

// ParseLimits parses /proc/PID/limits into limits by RLIMIT_ number.
func ParseLimits(data []byte) ([LimitCount]Limit, error) {
	var limits [LimitCount]Limit
	var seen int
	for line := range strings.Lines(string(data)) {
		for number, name := range limitNames {
			rest, ok := strings.CutPrefix(line, name+" ")
			if !ok {
				continue
			}
			words := strings.Fields(rest)
			if len(words) < 2 {
				return limits, fmt.Errorf("parsing limits: line %q", line)
			}
			soft, err := parseLimit(words[0])
			if err != nil {
				return limits, fmt.Errorf("parsing limits: line %q: %w", line, err)
			}
			hard, err := parseLimit(words[1])
			if err != nil {
				return limits, fmt.Errorf("parsing limits: line %q: %w", line, err)
			}
			limits[number] = Limit{soft, hard}
			seen++
		}
	}
	if seen != len(limitNames) {
		return limits, fmt.Errorf("parsing limits: %d of %d found", seen, len(limitNames))
	}
	return limits, nil
}

func parseLimit(word string) (uint64, error) {
	if word == "unlimited" {
		return math.MaxUint64, nil
	}
	return strconv.ParseUint(word, 10, 64)
}
