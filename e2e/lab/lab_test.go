package lab

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// up makes a lab for the time of a test.
func up(t *testing.T, o Options) *Lab {
	t.Helper()
	needRoot(t)
	o.Progress = func(what string) { t.Log(what) }
	l, err := Up(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Down(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	return l
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

// bare makes a lab without daemons.
func bare(t *testing.T, hosts int) *Lab {
	t.Helper()
	return up(t, Options{Hosts: hosts, NoDaemons: true})
}

func host(t *testing.T, l *Lab, name string) *Host {
	t.Helper()
	h, err := l.Host(name)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func run(t *testing.T, h *Host, args ...string) string {
	t.Helper()
	out, err := h.Exec(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// eventually waits for something that another process does and tells nobody of.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(20 * time.Second)
	for !done() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("still not: %s", what)
		}
	}
}

func content(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestHostsAreSeparate(t *testing.T) {
	l := bare(t, 2)
	for _, kind := range []string{"net", "pid", "mnt", "uts", "ipc", "cgroup", "time"} {
		here, err := os.Readlink("/proc/self/ns/" + kind)
		if err != nil {
			t.Fatal(err)
		}
		seen := map[string]string{here: "the machine"}
		for _, name := range []string{"host-a", "host-b", clientName, switchName} {
			there := run(t, host(t, l, name), "readlink", "/proc/self/ns/"+kind)
			if other, ok := seen[there]; ok {
				t.Errorf("%s shares its %s namespace with %s", name, kind, other)
			}
			seen[there] = name
		}
	}
	a := host(t, l, "host-a")
	if got := run(t, a, "hostname"); got != "host-a" {
		t.Errorf("host-a is called %q", got)
	}
	if got := run(t, a, "sh", "-c", "ls /sys/class/net | tr '\n' ' '"); got != "eth0 lo" {
		t.Errorf("host-a has the network cards %q", got)
	}
	if got := run(t, a, "sh", "-c", "grep ^0:: /proc/self/cgroup; cat /sys/fs/cgroup/init/cgroup.procs"); got != "0::/exec\n1" {
		t.Errorf("host-a sees its groups as %q", got)
	}
}

func TestHostsCountPIDsFromPlacesOfTheirOwn(t *testing.T) {
	l := bare(t, 2)
	var before int
	for _, name := range []string{"host-a", "host-b", clientName} {
		pid, err := strconv.Atoi(run(t, host(t, l, name), "sh", "-c", "echo $$"))
		if err != nil {
			t.Fatal(err)
		}
		// pid_max is at least 32768, so five hosts get at least this much each.
		if pid < before+5000 {
			t.Errorf("%s gives PID %d, the host before it %d", name, pid, before)
		}
		before = pid
	}
}

func TestClocks(t *testing.T) {
	l := bare(t, 2)
	here := func() (nanos [3]int64) {
		for i, id := range []int32{unix.CLOCK_MONOTONIC, unix.CLOCK_BOOTTIME, unix.CLOCK_REALTIME} {
			var ts unix.Timespec
			if err := unix.ClockGettime(id, &ts); err != nil {
				t.Fatal(err)
			}
			nanos[i] = ts.Nano()
		}
		return nanos
	}
	for _, h := range l.plan.Hosts {
		before := here()
		out := strings.Fields(run(t, host(t, l, h.Name), program(t, "clock")...))
		after := here()
		for i, ahead := range []time.Duration{h.Monotonic, h.Boottime, 0} {
			there, err := strconv.ParseInt(out[i], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			if there < before[i]+int64(ahead) || there > after[i]+int64(ahead) {
				t.Errorf("clock %d of %s says %d, want %v more than %d to %d", i, h.Name, there, ahead, before[i], after[i])
			}
		}
	}
}

func TestFileSystems(t *testing.T) {
	l := bare(t, 2)
	a, b := host(t, l, "host-a"), host(t, l, "host-b")
	for _, dir := range []string{"/run", "/dev/shm", "/dev/mqueue", "/srv/local"} {
		file := dir + "/lab-test-" + l.ID()
		run(t, a, "touch", file)
		if _, err := b.Exec(t.Context(), "test", "-e", file); err == nil {
			t.Errorf("%s of host-a is host-b's too", dir)
		}
		if _, err := os.Stat(file); err == nil {
			t.Errorf("%s of host-a is the machine's too", dir)
		}
	}
	shared := filepath.Join(t.TempDir(), "shared")
	run(t, a, "touch", shared)
	run(t, b, "test", "-e", shared)
	for _, path := range []string{"/srv", "/dev"} {
		// What the machine has there is still there.
		for _, name := range entries(t, path) {
			run(t, a, "ls", "-d", path+"/"+name)
		}
	}
	// A pseudoterminal is made through /dev/ptmx and found in /dev/pts.
	if got := run(t, a, "script", "-qec", "tty", "/dev/null"); got != "/dev/pts/0" {
		t.Errorf("the first terminal of host-a is %q", got)
	}
	if got := run(t, a, "stat", "-c", "%t:%T", "/dev/null"); got != "1:3" {
		t.Errorf("/dev/null of host-a is device %s", got)
	}
}

func entries(t *testing.T, dir string) []string {
	t.Helper()
	all, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range all {
		names = append(names, e.Name())
	}
	return names
}

func TestTwoLabsSideBySide(t *testing.T) {
	first, second := bare(t, 1), bare(t, 1)
	for _, l := range []*Lab{first, second} {
		p, err := host(t, l, "host-a").Start(t.Context(), Command{Args: program(t, "listen", ":80")})
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "listening", func() bool { return content(t, p.Log) != "" })
		if got := run(t, host(t, l, clientName), program(t, "dial", "10.77.0.1:80")...); got != "host-a" {
			t.Errorf("client of %s reached %q", l.ID(), got)
		}
	}
	if _, err := Find(""); err == nil || !strings.Contains(err.Error(), first.ID()) {
		t.Errorf("finding the only one of two labs: %v", err)
	}
	found, err := Find(second.ID())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(second.plan, found.plan, cmp.Comparer(func(a, b hostPlan) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
	if _, err := Up(t.Context(), Options{Name: first.ID(), NoDaemons: true}); err == nil || !strings.Contains(err.Error(), "lab down") {
		t.Errorf("making a lab of a name that is taken: %v", err)
	}
	run(t, host(t, first, "host-a"), "true") // it is none the worse for it
}

// traces is what a lab must not leave behind.
type traces struct {
	Mounts      string
	Directory   bool
	Groups      bool
	Processes   []string
	Descriptors []string
}

func tracesOf(t *testing.T, id string, networks []string) traces {
	t.Helper()
	_, dirErr := os.Lstat(directory(id))
	groups, err := openGroups(id)
	if err != nil {
		t.Fatal(err)
	}
	defer groups.close()
	_, groupErr := os.Lstat(groups.path)
	found := traces{Mounts: content(t, "/proc/self/mountinfo"), Directory: dirErr == nil, Groups: groupErr == nil}
	all, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range all {
		network, err := os.Readlink(p + "/ns/net")
		if err != nil {
			continue // dead, whether or not its parent has taken notice
		}
		group, _ := os.ReadFile(p + "/cgroup") // it may end while we look
		if slices.Contains(networks, network) || bytes.Contains(group, []byte(groupPrefix+id)) {
			found.Processes = append(found.Processes, p)
		}
	}
	for _, fd := range entries(t, "/proc/self/fd") {
		target, err := os.Readlink("/proc/self/fd/" + fd)
		if err == nil && !strings.HasPrefix(target, "anon_inode") { // the runtime's own
			found.Descriptors = append(found.Descriptors, target)
		}
	}
	slices.Sort(found.Descriptors)
	return found
}

func TestDownLeavesNothing(t *testing.T) {
	needRoot(t)
	const id = "leaves-nothing"
	before := tracesOf(t, id, nil)
	l, err := Up(t.Context(), Options{Name: id, Hosts: 2, NoDaemons: true})
	if err != nil {
		t.Fatal(err)
	}
	var networks []string
	for _, h := range l.plan.Hosts {
		networks = append(networks, run(t, host(t, l, h.Name), "readlink", "/proc/self/ns/net"))
	}
	a := host(t, l, "host-a")
	// One that does not want to go, one frozen, one in a group that is made late.
	for _, script := range []string{
		"trap '' TERM HUP INT; while :; do sleep 1; done",
		"mkdir /sys/fs/cgroup/cold && echo 0 > /sys/fs/cgroup/cold/cgroup.procs && echo 1 > /sys/fs/cgroup/cold/cgroup.freeze",
	} {
		if _, err := a.Start(t.Context(), Command{Args: []string{"sh", "-c", script}}); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "frozen", func() bool {
		out, err := a.Exec(t.Context(), "cat", "/sys/fs/cgroup/cold/cgroup.events")
		return err == nil && strings.Contains(out, "frozen 1")
	})
	during := tracesOf(t, id, networks)
	if !during.Directory || !during.Groups || len(during.Processes) < 6 {
		t.Errorf("the test looks in the wrong places: %+v", during)
	}
	if during.Mounts != before.Mounts {
		t.Error("the lab mounts something on the machine")
	}
	if err := l.Down(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, tracesOf(t, id, networks)); diff != "" {
		t.Errorf("left behind:\n%s", diff)
	}
	if _, err := Find(id); !errors.Is(err, ErrNone) {
		t.Errorf("finding a lab that was taken down: %v", err)
	}
	if err := l.Down(t.Context()); err != nil {
		t.Errorf("taking it down once more: %v", err)
	}
	if err := Remove(t.Context(), id); !errors.Is(err, ErrNone) {
		t.Errorf("removing what is not there: %v", err)
	}
}

func TestUpThatIsKilled(t *testing.T) {
	needRoot(t)
	const id = "killed"
	hostFile := func(host, file string) func(*groups) bool {
		return func(*groups) bool {
			_, err := os.Stat(filepath.Join(directory(id), host, file))
			return err == nil
		}
	}
	for _, tt := range []struct {
		when    string
		reached func(g *groups) bool
	}{
		{"directory made", hostFile("", "")},
		{"groups made", func(g *groups) bool { _, err := os.Stat(g.path); return err == nil }},
		{"first host born", hostFile("host-a", "init.log")},
		{"first host listens", hostFile("host-a", "control.sock")},
		{"last host listens", hostFile(switchName, "control.sock")},
	} {
		t.Run(tt.when, func(t *testing.T) {
			groups, err := openGroups(id)
			if err != nil {
				t.Fatal(err)
			}
			defer groups.close()
			args := program(t, "up", id, "outlive")
			maker := exec.Command(args[0], args[1:]...)
			if err := maker.Start(); err != nil {
				t.Fatal(err)
			}
			eventually(t, tt.when, func() bool { return tt.reached(groups) })
			_ = maker.Process.Kill()
			_ = maker.Wait()
			if err := Remove(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			if left := tracesOf(t, id, nil); left.Directory || left.Groups || left.Processes != nil {
				t.Errorf("left behind: %+v", left)
			}
		})
	}
}

// A lab ends with the program that made it, unless it was told to outlive it.
func TestMakerDies(t *testing.T) {
	needRoot(t)
	const id = "orphaned"
	for _, fate := range []string{"outlive", "die"} {
		t.Run(fate, func(t *testing.T) {
			args := program(t, "up", id, fate)
			maker := exec.Command(args[0], args[1:]...)
			out, err := maker.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := maker.Start(); err != nil {
				t.Fatal(err)
			}
			if _, err := out.Read(make([]byte, 16)); err != nil {
				t.Fatalf("waiting for the lab: %v", err)
			}
			_ = maker.Process.Kill()
			_ = maker.Wait()
			l, err := Find(id)
			if err != nil {
				t.Fatal(err)
			}
			if fate == "outlive" {
				if got := run(t, host(t, l, "host-a"), "hostname"); got != "host-a" {
					t.Errorf("host-a says %q", got)
				}
			} else {
				eventually(t, "hosts end", func() bool { return tracesOf(t, id, nil).Processes == nil })
			}
			if err := Remove(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestUpThatIsCancelled(t *testing.T) {
	needRoot(t)
	const id = "cancelled"
	ctx, cancel := context.WithCancel(t.Context())
	_, err := Up(ctx, Options{Name: id, NoDaemons: true, Progress: func(string) { cancel() }})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Up says %v, want context.Canceled", err)
	}
	if left := tracesOf(t, id, nil); left.Directory || left.Groups || left.Processes != nil {
		t.Errorf("left behind: %+v", left)
	}
}

func TestNotRoot(t *testing.T) {
	needRoot(t)
	nobody := exec.Command("/proc/self/exe", programFlag, "up", "nobody", "die")
	nobody.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := nobody.CombinedOutput()
	if err == nil || strings.Count(string(out), "\n") != 1 || !strings.Contains(string(out), "needs root") {
		t.Errorf("Up as nobody: %v: %s", err, out)
	}
}
