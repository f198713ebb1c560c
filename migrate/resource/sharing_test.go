package resource

import (
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

// Processes that have ended share nothing, though none of them has any memory; threads of one
// process do.
func TestEndedShareNothing(t *testing.T) {
	var ended [2]int
	for i := range ended {
		c := exec.Command("sleep", "1000")
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		ended[i] = c.Process.Pid
		if err := c.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Wait() })
		// It stays a zombie until Wait.
		if err := unix.Waitid(unix.P_PID, ended[i], nil, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
			t.Fatal(err)
		}
	}
	if order, err := kcmp(ended[0], ended[1], kcmpVM, 0, 0); err != nil || order != 0 {
		t.Fatalf("to the kernel their memories differ: %d, %v", order, err)
	}
	d := &TreeDump{Findings: &Findings{}}
	d.checkShared(ended[0], ended[1])
	if len(d.Blockers) > 0 {
		t.Errorf("%v", d.Blockers)
	}
	d.checkShared(unix.Getpid(), unix.Gettid())
	if len(d.Blockers) == 0 {
		t.Error("a process shares nothing with itself")
	}
}
