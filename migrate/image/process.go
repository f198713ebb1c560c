package image

// A Process is one process of the tree.
type Process struct {
	PID         int          `cbor:"pid"`
	PPID        int          `cbor:"ppid"`
	PGID        int          `cbor:"pgid"`
	SID         int          `cbor:"sid"`
	Memory      Memory       `cbor:"memory"`
	Descriptors []Descriptor `cbor:"descriptors"` // by number
	Locks       []Lock       `cbor:"locks"`       // POSIX record locks, which belong to the process
	Root        string       `cbor:"root"`
	Cwd         string       `cbor:"cwd"`
	Umask       int          `cbor:"umask"`

	Actions        []SignalAction  `cbor:"actions"`
	Pending        [][]byte        `cbor:"pending"` // struct siginfo of signals for the process
	JobStopped     bool            `cbor:"job_stopped"`
	IntervalTimers []IntervalTimer `cbor:"interval_timers"` // ITIMER_REAL, _VIRTUAL, _PROF
	Timers         []Timer         `cbor:"timers"`

	Limits         []Limit  `cbor:"limits"` // by RLIMIT_ number
	OOMScoreAdj    int      `cbor:"oom_score_adj"`
	CoredumpFilter uint64   `cbor:"coredump_filter"`
	Personality    uint64   `cbor:"personality"`
	Switches       []Switch `cbor:"switches"`   // prctl(2) settings of the process
	Membarrier     uint64   `cbor:"membarrier"` // registered commands (membarrier(2))

	// SharedFilters says that all threads have the same seccomp filters, so
	// that they are installed once and stay shared.
	SharedFilters bool     `cbor:"shared_filters"`
	Threads       []Thread `cbor:"threads"` // the leader first
}

// A Switch is one setting of prctl(2) that is read and set by number.
type Switch struct {
	Name  string `cbor:"name"`
	Value uint64 `cbor:"value"`
}

// Limit is one resource limit (getrlimit(2)).
type Limit struct {
	Soft uint64 `cbor:"soft"`
	Hard uint64 `cbor:"hard"`
}

// SignalAction is struct kernel_sigaction of a signal that has one.
type SignalAction struct {
	Signal   int    `cbor:"signal"`
	Handler  uint64 `cbor:"handler"`
	Flags    uint64 `cbor:"flags"`
	Restorer uint64 `cbor:"restorer"`
	Mask     uint64 `cbor:"mask"`
}

// IntervalTimer is what getitimer(2) returned, in nanoseconds.
type IntervalTimer struct {
	Which    int   `cbor:"which"`
	Value    int64 `cbor:"value"`
	Interval int64 `cbor:"interval"`
}

// A Timer is a POSIX timer (timer_create(2)); times are nanoseconds.
type Timer struct {
	ID       int    `cbor:"id"`
	Clock    int    `cbor:"clock"`
	Notify   int    `cbor:"notify"` // SIGEV_*
	Signal   int    `cbor:"signal"`
	SigVal   uint64 `cbor:"sigval"`
	Thread   int    `cbor:"thread"` // with SIGEV_THREAD_ID
	Value    int64  `cbor:"value"`  // until it expires; 0: disarmed
	Interval int64  `cbor:"interval"`
}

// A Thread is one thread of a process.
type Thread struct {
	TID       int    `cbor:"tid"`
	Name      string `cbor:"name"`
	Registers []byte `cbor:"registers"` // struct user_regs_struct
	XState    []byte `cbor:"xstate"`
	// Call is the interrupted system call, if there is one.
	Call *SystemCall `cbor:"call,omitempty"`

	SignalMask uint64   `cbor:"signal_mask"`
	Pending    [][]byte `cbor:"pending"`
	AltStack   AltStack `cbor:"alt_stack"`

	ClearTID   uint64       `cbor:"clear_tid"`
	RobustList uint64       `cbor:"robust_list"`
	RobustLen  uint64       `cbor:"robust_len"`
	Rseq       Rseq         `cbor:"rseq"`
	Dispatch   UserDispatch `cbor:"dispatch"`

	Credentials Credentials `cbor:"credentials"`
	Filters     []Filter    `cbor:"filters"` // oldest first
	// SeccompStrict is SECCOMP_MODE_STRICT.
	SeccompStrict bool `cbor:"seccomp_strict"`

	Affinity   []byte     `cbor:"affinity"` // as sched_getaffinity(2) writes it
	Scheduling Scheduling `cbor:"scheduling"`
	IOPriority int        `cbor:"io_priority"`
	TimerSlack uint64     `cbor:"timer_slack"` // nanoseconds
	Switches   []Switch   `cbor:"switches"`
}

// SystemCall is a call that a thread slept in when it was stopped. Its
// registers hold -Restart as the result.
type SystemCall struct {
	Nr      int       `cbor:"nr"`
	Args    [6]uint64 `cbor:"args"`
	Restart int       `cbor:"restart"`
	// Remaining is what is left of its time-out in nanoseconds, or negative if
	// it has none or it is not known.
	Remaining int64 `cbor:"remaining"`
}

// AltStack is the alternate signal stack (sigaltstack(2)).
type AltStack struct {
	Pointer uint64 `cbor:"pointer"`
	Flags   int    `cbor:"flags"`
	Bytes   uint64 `cbor:"bytes"`
}

// Rseq is the registration of a restartable sequence area (rseq(2)).
type Rseq struct {
	Address   uint64 `cbor:"address"` // 0: none
	Bytes     uint32 `cbor:"bytes"`
	Signature uint32 `cbor:"signature"`
}

// UserDispatch is syscall user dispatch.
type UserDispatch struct {
	Mode     uint64 `cbor:"mode"`
	Selector uint64 `cbor:"selector"`
	Offset   uint64 `cbor:"offset"`
	Len      uint64 `cbor:"len"`
}

// Credentials are who a thread is and what it may do (credentials(7),
// capabilities(7)).
type Credentials struct {
	UIDs       [4]uint32 `cbor:"uids"` // real, effective, saved, file system
	GIDs       [4]uint32 `cbor:"gids"`
	Groups     []uint32  `cbor:"groups"`
	Effective  uint64    `cbor:"effective"`
	Permitted  uint64    `cbor:"permitted"`
	Inherit    uint64    `cbor:"inherit"`
	Bounding   uint64    `cbor:"bounding"`
	Ambient    uint64    `cbor:"ambient"`
	SecureBits uint32    `cbor:"secure_bits"`
	NoNewPrivs bool      `cbor:"no_new_privs"`
}

// A Filter is one seccomp filter: a classic BPF program as an array of struct
// sock_filter.
type Filter struct {
	Program []byte `cbor:"program"`
	Flags   uint64 `cbor:"flags"`
}

// Scheduling is struct sched_attr (sched_setattr(2)).
type Scheduling struct {
	Policy   uint32 `cbor:"policy"`
	Flags    uint64 `cbor:"flags"`
	Nice     int32  `cbor:"nice"`
	Priority uint32 `cbor:"priority"`
	Runtime  uint64 `cbor:"runtime"`
	Deadline uint64 `cbor:"deadline"`
	Period   uint64 `cbor:"period"`
}
