package freezer

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func TestFindMount(t *testing.T) {
	for name, test := range map[string]struct {
		mountinfo, want string
		found           bool
	}{
		"unified":        {"36 32 0:31 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw\n", "/sys/fs/cgroup", true},
		"beside v1":      {"30 25 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n31 25 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n", "/sys/fs/cgroup/unified", true},
		"a part only":    {"31 25 0:27 /a/b /mnt rw - cgroup2 cgroup2 rw\n", "", false},
		"name with room": {"31 25 0:27 / /mnt/my\\040groups\\134 rw - cgroup2 none rw\n", `/mnt/my groups\`, true},
		"none":           {"22 1 8:1 / / rw - ext4 /dev/sda1 rw\n", "", false},
		"broken":         {" - cgroup2 \n31 - cgroup2 x\n", "", false},
	} {
		if got, found := findMount(test.mountinfo); got != test.want || found != test.found {
			t.Errorf("%s: %q, %v", name, got, found)
		}
	}
}

func TestParseMembership(t *testing.T) {
	for content, want := range map[string]string{
		"0::/\n": "/",
		"9:name=systemd:/x\n4:memory:/a\n0::/user.slice/a b\n": "/user.slice/a b",
		"0::/..":            "",
		"0::/../other\n":    "",
		"0::relative\n":     "",
		"4:memory:/a\n":     "",
		"":                  "",
		"0::/..not/above\n": "/..not/above",
	} {
		got, err := parseMembership(content)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v", content, got, err)
		}
	}
}

func FuzzParseMembership(f *testing.F) {
	f.Add("9:name=systemd:/x\n0::/user.slice/a b\n")
	f.Add("0::/../other\n")
	f.Fuzz(func(t *testing.T, content string) {
		if within, err := parseMembership(content); err == nil && (!filepath.IsAbs(within) || filepath.Join("/mount", within) == "/") {
			t.Errorf("%q: %q", content, within)
		}
	})
}

func FuzzFindMount(f *testing.F) {
	f.Add("36 32 0:31 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
	f.Add("31 25 0:27 / /mnt/my\\040groups rw - cgroup2 none rw\n")
	f.Fuzz(func(t *testing.T, mountinfo string) {
		if mount, ok := findMount(mountinfo); ok != (mount != "") {
			t.Errorf("%q: %q, %v", mountinfo, mount, ok)
		}
	})
}

// newGroup makes a group below the test's own.
func newGroup(t *testing.T) Group {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	root, err := Mount()
	if err != nil {
		t.Skip(err)
	}
	own, err := Of(root, os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	g := own.Child("pagurus-freezer-test")
	if err := errors.Join(g.Make(), g.Make()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Remove(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return g
}

func startIn(t *testing.T, g Group) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	if err := g.Add(cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	return cmd
}

func TestFreeze(t *testing.T) {
	g := newGroup(t)
	cmd := startIn(t, g)
	pids, err := g.Processes()
	if err != nil || !slices.Equal(pids, []int{cmd.Process.Pid}) {
		t.Errorf("processes %v, %v", pids, err)
	}
	root, err := Mount()
	if err != nil {
		t.Fatal(err)
	}
	if in, err := Of(root, cmd.Process.Pid); err != nil || in != g {
		t.Errorf("process is in %v, %v", in, err)
	}
	for range 3 {
		if err := g.Freeze(t.Context()); err != nil {
			t.Fatal(err)
		}
		if frozen, err := g.Frozen(); err != nil || !frozen {
			t.Errorf("frozen: %v, %v", frozen, err)
		}
		if err := g.Thaw(); err != nil {
			t.Fatal(err)
		}
		if frozen, err := g.Frozen(); err != nil || frozen {
			t.Errorf("frozen: %v, %v", frozen, err)
		}
	}
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := g.Remove(canceled); !errors.Is(err, context.Canceled) {
		t.Errorf("removing a group that is in use: %v", err)
	}
	// A frozen process can be killed, and Remove waits for that.
	if err := g.Freeze(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(cmd.Process.Pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := g.Remove(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestWas: the id of a process that has ended is in use until its parent has
// asked for its status, and nothing but this says so.
func TestWas(t *testing.T) {
	g := newGroup(t)
	cmd := startIn(t, g)
	pid := cmd.Process.Pid
	if !g.Was(pid) || g.Was(os.Getpid()) {
		t.Errorf("a process of the group: %v, this one: %v", g.Was(pid), g.Was(os.Getpid()))
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := g.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !g.Was(pid) {
		t.Error("nothing is known of one that ended")
	}
	if _, err := cmd.Process.Wait(); err != nil {
		t.Fatal(err)
	}
	if g.Was(pid) {
		t.Error("its id is free")
	}
}

func TestGroupThatIsNotThere(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	root, err := Mount()
	if err != nil {
		t.Skip(err)
	}
	g := At(filepath.Join(root, "pagurus-not-there"))
	if pids, err := g.Processes(); err != nil || len(pids) > 0 {
		t.Errorf("processes %v, %v", pids, err)
	}
	if frozen, err := g.Frozen(); err != nil || frozen {
		t.Errorf("frozen: %v, %v", frozen, err)
	}
	if err := g.Remove(t.Context()); err != nil {
		t.Error(err)
	}
	if err := g.Add(os.Getpid()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("joining it: %v", err)
	}
	if err := g.Freeze(t.Context()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("freezing it: %v", err)
	}
}
