package control

import (
	"fmt"
	"syscall"
)

// A Request is what a connection begins with. Exactly one field is set.
type Request struct {
	Exec   *Exec   `json:"exec,omitempty"`
	Kill   *Kill   `json:"kill,omitempty"`
	Daemon *Daemon `json:"daemon,omitempty"`
}

// Exec starts a command in a session of its own. Without Detach its three
// standard streams come along as descriptors; with it, it reads /dev/null and
// writes to a log file of the lab.
type Exec struct {
	Args   []string `json:"args"`
	Env    []string `json:"env"`
	Dir    string   `json:"dir"`
	Detach bool     `json:"detach,omitempty"`
}

// Kill sends a signal to a process of the host.
type Kill struct {
	PID    int            `json:"pid"`
	Signal syscall.Signal `json:"signal"`
}

// What can be done to a daemon.
const (
	DaemonRun   = "run"   // define it by Args, or define it anew, and start it
	DaemonStart = "start" // start it if it is not running
	DaemonStop  = "stop"  // end it and all of its group; it stays down
	DaemonPID   = "pid"   // which process it is now, 0 for none
)

// Daemon is about one supervised program.
type Daemon struct {
	Name string   `json:"name"`
	Do   string   `json:"do"`
	Args []string `json:"args,omitempty"`
}

// A Reply answers a request, or tells the end of a command.
type Reply struct {
	PID   int    `json:"pid,omitempty"`
	Log   string `json:"log,omitempty"`
	Exit  *Exit  `json:"exit,omitempty"`
	Error *Error `json:"error,omitempty"`
}

// Exit is how a command ended: by itself with Code, or by Signal.
type Exit struct {
	Code   int            `json:"code"`
	Signal syscall.Signal `json:"signal,omitempty"`
}

// Status is the exit status that a shell would show for it.
func (e Exit) Status() int {
	if e.Signal != 0 {
		return 128 + int(e.Signal)
	}
	return e.Code
}

// Exit statuses of commands that did not start, as env(1) has them.
const (
	StatusNotExecutable = 126
	StatusNotFound      = 127
)

// An Error is a refusal. Status is set if a command could not be started.
type Error struct {
	Message string `json:"message"`
	Status  int    `json:"status,omitempty"`
}

func (e *Error) Error() string { return e.Message }

// Errorf makes a refusal.
func Errorf(format string, args ...any) *Error {
	return &Error{Message: fmt.Sprintf(format, args...)}
}

// A Signal goes to the command that the connection runs, and to the whole of
// its process group, as it would from a terminal.
type Signal struct {
	Signal syscall.Signal `json:"signal"`
}
