package parasitetest

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
)

// environment names the kind of victim to the started binary.
const environment = "PAGURUS_VICTIM"

// A kind of victim: what it does until stop is set. It calls ready once, and
// returns what it found wrong.
type kind func(ready func(), stop *atomic.Bool) error

// Kinds of victims.
const (
	// Busy holds patterns in its registers in two threads and sleeps in many
	// kinds of system calls in others; it fails on any EINTR.
	Busy = "busy"
	// Steady is Busy without the calls that return EINTR after a mere stop.
	Steady = "steady"
	// Confined is Busy below a seccomp filter that kills it for getppid(2) and
	// for memory that is mapped executable.
	Confined = "confined"
	// Guarded is Steady below one that kills it for tkill(2).
	Guarded = "guarded"
	// Idle waits for its end and does nothing else.
	Idle = "idle"
)

var kinds = map[string]kind{
	Busy:     busy,
	Steady:   steady,
	Confined: confined,
	Guarded:  guarded,
	Idle:     idle,
}

// Main turns the process into a victim if it was started as one.
func Main() {
	name := os.Getenv(environment)
	if name == "" {
		return
	}
	run, ok := kinds[name]
	if !ok {
		fmt.Fprintf(os.Stderr, "no victim %q\n", name)
		os.Exit(2)
	}
	var stop atomic.Bool
	done := make(chan error, 1)
	go func() {
		done <- run(func() { fmt.Fprintln(os.Stdout, "ready") }, &stop)
	}()
	_, _ = io.Copy(io.Discard, os.Stdin) // until it is told to stop
	stop.Store(true)
	if err := <-done; err != nil {
		fmt.Fprintln(os.Stdout, err)
		os.Exit(1)
	}
	fmt.Fprintln(os.Stdout, "well")
	os.Exit(0)
}

func idle(ready func(), _ *atomic.Bool) error {
	ready()
	return nil
}

// A Victim is a running victim.
type Victim struct {
	PID    int
	cmd    *exec.Cmd
	stdin  io.Closer
	output *bufio.Reader
	ended  bool
}

// NeedRoot skips a test that cannot run without root's capabilities.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

// Start starts a victim, for which it needs root, and waits until it is ready.
// It is killed at the end of the test, if it still runs.
func Start(t testing.TB, kind string) *Victim {
	t.Helper()
	// What it leaves of System V semaphores goes with it.
	return StartIn(t, kind, syscall.CLONE_NEWIPC)
}

// StartIn starts a victim in new namespaces (CLONE_NEWIPC, ...).
func StartIn(t testing.TB, kind string, namespaces uintptr) *Victim {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	// Go preempts goroutines by signals, which make system calls return EINTR.
	cmd.Env = append(os.Environ(), environment+"="+kind, "GODEBUG=asyncpreemptoff=1")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: namespaces}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	v := &Victim{PID: cmd.Process.Pid, cmd: cmd, stdin: stdin, output: bufio.NewReader(stdout)}
	t.Cleanup(v.Kill)
	if line, err := v.output.ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("victim says %q (%v) instead of being ready", line, err)
	}
	return v
}

// Finish asks the victim for its opinion and ends it.
func (v *Victim) Finish() error {
	v.stdin.Close()
	said, readErr := io.ReadAll(v.output)
	err := v.cmd.Wait()
	v.ended = true
	switch {
	case readErr != nil:
		return readErr
	case err != nil:
		return fmt.Errorf("victim: %w: %s", err, strings.TrimSpace(string(said)))
	case string(said) != "well\n":
		return fmt.Errorf("victim says %q", said)
	}
	return nil
}

// Kill kills the victim, if it still runs, and waits for its end.
func (v *Victim) Kill() {
	if v.ended {
		return
	}
	_ = v.cmd.Process.Kill()
	_ = v.cmd.Wait()
	v.ended = true
}
