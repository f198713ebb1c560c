package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make control groups")
	}
}

func hierarchy(t *testing.T) *Hierarchy {
	t.Helper()
	needRoot(t)
	h, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

// start starts a sleeper directly in a group.
func start(t *testing.T, group string) *exec.Cmd {
	t.Helper()
	dir, err := os.Open(group)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	c := exec.Command("sleep", "1000")
	c.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestClearAndRemove(t *testing.T) {
	top := filepath.Join(hierarchy(t).Path, fmt.Sprintf("pagurus-cgroup-test-%d", os.Getpid()))
	below := filepath.Join(top, "a", "b")
	if err := os.MkdirAll(below, 0o755); err != nil {
		t.Fatal(err)
	}
	soon := func() time.Time { return time.Now().Add(10 * time.Second) }
	t.Cleanup(func() {
		if err := Remove(top, soon()); err != nil {
			t.Error(err)
		}
	})
	// Twice: a group can be used again.
	for range 2 {
		first, second := start(t, filepath.Dir(below)), start(t, below)
		if err := os.WriteFile(filepath.Join(below, "cgroup.freeze"), []byte("1"), 0); err != nil {
			t.Fatal(err)
		}
		if err := Clear(top, soon()); err != nil {
			t.Fatal(err)
		}
		for _, c := range []*exec.Cmd{first, second} {
			var exit *exec.ExitError
			if err := c.Wait(); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != unix.SIGKILL {
				t.Errorf("the process ended with %v", err)
			}
		}
		if err := os.WriteFile(filepath.Join(below, "cgroup.freeze"), []byte("0"), 0); err != nil {
			t.Fatal(err)
		}
	}
	third := start(t, below)
	if err := Remove(top, soon()); err != nil {
		t.Fatal(err)
	}
	_ = third.Wait()
	if _, err := os.Stat(top); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the group is still there: %v", err)
	}
	if err := Remove(top, soon()); err != nil {
		t.Errorf("removing it again: %v", err)
	}
}

func TestOpenFindsTheMount(t *testing.T) {
	h := hierarchy(t)
	if _, err := os.Stat(filepath.Join(h.Path, "cgroup.procs")); err != nil {
		t.Errorf("%s is no control group: %v", h.Path, err)
	}
}

// Where cgroup2 is mounted nowhere, groups are reached all the same.
func TestMountOutOfSight(t *testing.T) {
	needRoot(t)
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		// In a namespace of one's own a mount leaves the machine's options alone.
		if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
			result <- err
			return
		}
		mount, err := mountOutOfSight()
		if err != nil {
			result <- err
			return
		}
		defer mount.Close()
		group := fmt.Sprintf("/proc/self/fd/%d/pagurus-cgroup-test-hidden-%d", mount.Fd(), os.Getpid())
		result <- errors.Join(os.Mkdir(group, 0o755), Remove(group, time.Now().Add(time.Second)))
	}()
	if err := <-result; err != nil {
		t.Error(err)
	}
}

func TestUnescape(t *testing.T) {
	if got := unescape(`/a\040b\134c`); got != `/a b\c` {
		t.Errorf("got %q", got)
	}
}
