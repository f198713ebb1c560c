package procfs

import (
	"fmt"
	"strconv"
	"strings"
)

// Timer is one POSIX timer in /proc/PID/timers.
type Timer struct {
	ID     int
	Signal int
	SigVal uint64
	Notify int // SIGEV_*
	Thread int // with SIGEV_THREAD_ID, else the process
	Clock  int
}

const sigevThreadID = 4

// ParseTimers parses /proc/PID/timers:
//
//	ID: 1
//	signal: 60/00007fff86e452a8
//	notify: signal/pid.2634
//	ClockID: 0
func ParseTimers(data []byte) ([]Timer, error) {
	var timers []Timer
	for line := range strings.Lines(string(data)) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
		if name == "ID" {
			timers = append(timers, Timer{})
		} else if len(timers) == 0 {
			return nil, fmt.Errorf("parsing timers: line %q before any timer", line)
		}
		t := &timers[len(timers)-1]
		var err error
		switch name {
		case "ID":
			t.ID, err = strconv.Atoi(value)
		case "signal":
			signal, sigval, _ := strings.Cut(value, "/")
			if t.Signal, err = strconv.Atoi(signal); err == nil {
				// A null pointer is printed as such, or as "(null)" by older kernels.
				t.SigVal, err = strconv.ParseUint(strings.TrimPrefix(strings.Replace(sigval, "(null)", "0", 1), "0x"), 16, 64)
			}
		case "notify":
			err = t.parseNotify(value)
		case "ClockID":
			t.Clock, err = strconv.Atoi(value)
		}
		if err != nil {
			return nil, fmt.Errorf("parsing timers: line %q: %w", line, err)
		}
	}
	return timers, nil
}

// parseNotify parses "signal/pid.812", "none/pid.812" or "signal/tid.815".
func (t *Timer) parseNotify(value string) error {
	how, whom, _ := strings.Cut(value, "/")
	kind, id, _ := strings.Cut(whom, ".")
	// The kernel's words for SIGEV_SIGNAL, SIGEV_NONE, SIGEV_THREAD.
	notify := map[string]int{"signal": 0, "none": 1, "thread": 2}
	n, ok := notify[how]
	if !ok {
		return fmt.Errorf("unknown notification %q", how)
	}
	t.Notify = n
	if kind == "tid" {
		t.Notify |= sigevThreadID
	}
	var err error
	t.Thread, err = strconv.Atoi(id)
	return err
}
