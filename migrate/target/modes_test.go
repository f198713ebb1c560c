package target_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate"
)

// startScript starts a program of Python's that says "ready" in its log.
func startScript(t *testing.T, script string, args ...string) (pid int, log string) {
	t.Helper()
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("no python3")
	}
	log = filepath.Join(t.TempDir(), "log")
	pid = startProgram(t, log, python, append([]string{"-u", "-c", script}, args...)...)
	awaitText(t, log, "ready\n")
	return pid, log
}

// awaitText waits until a file says just this.
func awaitText(t *testing.T, path, want string) {
	t.Helper()
	await(t, func() bool {
		text, err := os.ReadFile(path)
		return err == nil && string(text) == want
	})
}

// state is the state of a process (proc_pid_stat(5)).
func state(t *testing.T, pid int) string {
	t.Helper()
	_, rest, _ := strings.Cut(read(t, filepath.Join("/proc", strconv.Itoa(pid), "stat")), ") ")
	return rest[:1]
}

// A process that is stopped by a signal arrives stopped, and goes on when it is
// continued there.
func TestMoveStopped(t *testing.T) {
	host := newSource(t)
	const script = "import time\nprint('ready')\nfor i in iter(int, 1): time.sleep(0.01); open('/proc/self/comm', 'w').write(str(time.time()))"
	pid, _ := startScript(t, script)
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	await(t, func() bool { return state(t, pid) == "T" })
	d := move(t, host, pid, migrate.Options{Verify: true}.WithDefaults())
	arrived := d.arrived(pid)
	if s := state(t, arrived); s != "T" {
		t.Errorf("it arrives in state %s", s)
	}
	name := read(t, filepath.Join("/proc", strconv.Itoa(arrived), "comm"))
	if err := unix.Kill(arrived, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	await(t, func() bool { return read(t, filepath.Join("/proc", strconv.Itoa(arrived), "comm")) != name })
}

// A process that may only read, write and exit (SECCOMP_MODE_STRICT) moves, and
// still may not do anything else.
func TestMoveStrict(t *testing.T) {
	host := newSource(t)
	const script = `
import ctypes, os, sys
orders = os.open(sys.argv[1], os.O_RDONLY)
prctl, read, write = ctypes.CDLL(None).prctl, os.read, os.write
write(1, b"ready\n")
prctl(22, 1)
while True:
    order = read(orders, 1)
    if order == b"w": write(1, b"here\n")
    if order == b"f": os.getppid()
`
	orders := filepath.Join(t.TempDir(), "orders")
	if err := os.WriteFile(orders, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	pid, log := startScript(t, script, orders)
	await(t, func() bool {
		return strings.Contains(read(t, filepath.Join("/proc", strconv.Itoa(pid), "status")), "Seccomp:\t1")
	})
	d := move(t, host, pid, migrate.Options{Verify: true}.WithDefaults())
	arrived := d.arrived(pid)
	if err := os.WriteFile(orders, []byte("w"), 0o600); err != nil {
		t.Fatal(err)
	}
	awaitText(t, log, "ready\nhere\n")
	if err := os.WriteFile(orders, []byte("wf"), 0o600); err != nil {
		t.Fatal(err)
	}
	await(t, func() bool { return state(t, arrived) == "Z" }) // its parent there does not ask for its status
}

// A process that has changed its root and its working directory has the same
// there.
func TestMoveChangedRoot(t *testing.T) {
	host := newSource(t)
	const script = `
import os, sys, time
os.chroot(sys.argv[1]); os.chdir("/below")
print("ready")
for i in iter(int, 1): open("beats", "a").write("."); time.sleep(0.01)
`
	root := t.TempDir()
	below := filepath.Join(root, "below")
	if err := os.Mkdir(below, 0o755); err != nil {
		t.Fatal(err)
	}
	pid, _ := startScript(t, script, root)
	d := move(t, host, pid, migrate.Options{Verify: true}.WithDefaults())
	arrived := d.arrived(pid)
	for link, want := range map[string]string{"root": root, "cwd": below} {
		if is, err := os.Readlink(filepath.Join("/proc", strconv.Itoa(arrived), link)); err != nil || is != want {
			t.Errorf("its %s is %q, %v, not %q", link, is, err, want)
		}
	}
	beats := func() int { return len(read(t, filepath.Join(below, "beats"))) }
	before := beats()
	await(t, func() bool { return beats() > before+5 })
}
