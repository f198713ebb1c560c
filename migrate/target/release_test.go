package target_test

import (
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate"
)

// A shell is let go of when its ids are free, which on a host whose first process
// is slow to ask for the status of its children is later than its end: whoever
// tries again at once must not find them taken.
func TestReleaseFreesIDs(t *testing.T) {
	host := newSource(t)
	// What has lost its parent becomes a child of this process.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0); err != nil {
			t.Error(err)
		}
	})
	pid := startWorkload(t, "epoll").pid
	inventory := inventoryOf(t, host, pid, migrate.Options{}.WithDefaults())
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Wait4(pid, nil, 0, nil); err != nil {
		t.Fatal(err)
	}
	d := startDestination(t, syscall.CLONE_NEWNS)
	d.reserve(inventory, migrate.Options{}.WithDefaults())
	for range 3 {
		reaped := make(chan error, 1)
		go func() { reaped <- reapLate(pid) }()
		if a := d.do(order{Do: "release"}); a.Error != "" {
			t.Fatal("releasing:", a.Error)
		}
		d.reserve(inventory, migrate.Options{}.WithDefaults())
		if err := <-reaped; err != nil {
			t.Fatal("the end of the shell:", err)
		}
	}
}

// reapLate asks for the status of a child some time after its end.
func reapLate(pid int) error {
	if err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		return err
	}
	// Time for whoever does not wait to go on.
	<-time.After(30 * time.Millisecond)
	_, err := unix.Wait4(pid, nil, 0, nil)
	return err
}
