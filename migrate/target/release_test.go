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
		d.send(order{Do: "release"})
		d.send(order{Do: "reserve", Inventory: inventory, Options: migrate.Options{}.WithDefaults()})
		if err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
			t.Fatal("waiting for the end of the shell:", err)
		}
		// Time for the wrong answer, which has nothing to wait for.
		<-time.After(30 * time.Millisecond)
		if _, err := unix.Wait4(pid, nil, 0, nil); err != nil {
			t.Fatal("taking the status of the shell:", err)
		}
		if a := d.answer(); a.Error != "" {
			t.Fatal("releasing:", a.Error)
		}
		if a := d.answer(); a.Error != "" || len(a.Blockers) > 0 {
			t.Fatal("reserving again:", a.Error, a.Blockers)
		}
	}
}
