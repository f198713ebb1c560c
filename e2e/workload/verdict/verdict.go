package verdict

// A Verdict is what a workload found out about itself.
type Verdict struct {
	Program string `json:"program"`
	Token   string `json:"token,omitempty"` // of the question that it answers
	PID     int    `json:"pid"`
	Host    string `json:"host"` // as uname(2) has it at the time

	OK       bool     `json:"ok"`
	Problems []string `json:"problems"`          // the first MaxProblems
	Unlisted int      `json:"unlisted_problems"` // how many more there were

	// Counts are totals since the start; what is counted depends on the program.
	Counts  map[string]int64 `json:"counts"`
	Threads []Thread         `json:"threads"`
	Clock   Clock            `json:"clock"`
}

// MaxProblems bounds the list of problems.
const MaxProblems = 50

// A Thread is one thread that does the program's work.
type Thread struct {
	TID            int   `json:"tid"`
	Steps          int64 `json:"steps"`
	LongestPauseNS int64 `json:"longest_pause_ns"` // by CLOCK_MONOTONIC, between two steps
}

// Clock is what the program saw of its clocks. A monotonic clock that goes
// back is a problem too; a real-time clock may be set by the machine.
type Clock struct {
	MonotonicBackNS int64 `json:"monotonic_back_ns"` // largest step back
	RealtimeBackNS  int64 `json:"realtime_back_ns"`

	// How much farther the real-time clock went than the monotonic one since
	// the start: what a move did not account for, if nobody set the clock.
	DriftNS int64 `json:"drift_ns"`
}
