package e2e

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/e2e/lab"
	"github.com/pagurus-project/pagurus/e2e/testbed"
	"github.com/pagurus-project/pagurus/migrate"
)

// TestRefusals asks for what cannot be done: exit code 2, one line that says
// why, and nothing is touched. Kernel threads cannot be seen from a lab's hosts.
func TestRefusals(t *testing.T) {
	ctx := limit(t, 2*time.Minute)
	p := start(ctx, t, "host-a", "$BIN/workload", "memory", "-size", "8MiB", "-ask", "$ASK")
	agent, err := host(t, "host-a").Daemon("agent").PID(ctx)
	if err != nil {
		t.Fatal(err)
	}
	coordinator, err := host(t, "host-a").Daemon("coordinator").PID(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		pid  int
		from string
		to   string
		code migrate.Code
	}{
		{"unknown PID", 4_000_000, "host-a", "host-b", migrate.CodeNoSuchProcess},
		{"no PID at all", 0, "host-a", "host-b", migrate.CodeNoSuchProcess},
		{"unknown destination", p.PID, "host-a", "host-z", migrate.CodeNoSuchHost},
		{"unknown source", p.PID, "host-z", "host-b", migrate.CodeNoSuchHost},
		{"same host", p.PID, "host-a", "host-a", migrate.CodeSameHost},
		{"elsewhere", p.PID, "host-b", "host-c", migrate.CodeNoSuchProcess},
		{"init", 1, "host-a", "host-b", migrate.CodeInit},
		{"the agent", agent, "host-a", "host-b", migrate.CodeOwnDaemon},
		{"a coordinator", coordinator, "host-a", "host-b", migrate.CodeOwnDaemon},
	} {
		t.Run(tt.name, func(t *testing.T) {
			refused(ctx, t, &testbed.Process{PID: tt.pid, Host: tt.from}, tt.to, tt.code)
		})
	}
	t.Run("PID taken there", func(t *testing.T) {
		need(t, "python3")
		// clone3(2) with set_tid. To count PIDs from another place would let the
		// host's own threads take the number, or those of its neighbours.
		const squat = "import ctypes, struct, sys, time\n" +
			"number = ctypes.c_int(int(sys.argv[1]))\n" +
			"args = struct.pack('11Q', 0, 0, 0, 0, 17, 0, 0, 0, ctypes.addressof(number), 1, 0)\n" + // SIGCHLD
			"if ctypes.CDLL(None).syscall(435, args, len(args)) > 0: print('ready', flush=True)\n" +
			"time.sleep(1000)"
		parent, err := bed.Start(ctx, "host-b", "python3", "-c", squat, fmt.Sprint(p.PID), "$ASK")
		if err != nil {
			t.Fatal(err)
		}
		defer end(ctx, t, "host-b", p.PID)
		defer end(ctx, t, "host-b", parent.PID) // first: it does not wait for its child
		refused(ctx, t, p, "host-b", migrate.CodePIDTaken)
	})
	t.Run("no memory there", func(t *testing.T) {
		const little = "sed 's/^MemAvailable:.*/MemAvailable: 4096 kB/' /proc/meminfo > $1 && mount --bind $1 /proc/meminfo"
		on(ctx, t, "host-b", "sh", "-c", little, "sh", filepath.Join(t.TempDir(), "meminfo"))
		defer on(ctx, t, "host-b", "umount", "/proc/meminfo")
		refused(ctx, t, p, "host-b", migrate.CodeMemory)
	})
	t.Run("debugger", func(t *testing.T) {
		need(t, "python3")
		const attach = "import ctypes, sys, time\n" +
			"if ctypes.CDLL(None).ptrace(0x4206, int(sys.argv[1]), None, None) == 0: print('ready', flush=True)\n" + // PTRACE_SEIZE
			"time.sleep(1000)"
		debugger, err := bed.Start(ctx, "host-a", "python3", "-c", attach, fmt.Sprint(p.PID), "$ASK")
		if err != nil {
			t.Fatal(err)
		}
		defer end(ctx, t, "host-a", debugger.PID)
		refused(ctx, t, p, "host-b", migrate.CodeTraced)
	})
	t.Run("in a migration", func(t *testing.T) {
		slow := detached(ctx, t, p, "host-b", "--bandwidth", "8Mbit")
		refused(ctx, t, p, "host-c", migrate.CodeBusy)
		if code, stderr, err := bed.Run(ctx, nil, "cancel", slow); err != nil || code != 0 {
			t.Fatalf("cancelling: exit code %d, %v: %s", code, err, stderr)
		}
		if r := settled(ctx, t, slow); r.State != migrate.StateAborted {
			t.Errorf("cancelled, it is %s: %s", r.State, r.Reason)
		}
	})
	alone(t, p)
	content(ctx, t, p)
	moved(ctx, t, p, "host-b") // nothing stands in its way after all that
}

// TestRefusalListsEverything has more than one thing in the way.
func TestRefusalListsEverything(t *testing.T) {
	ctx := limit(t, time.Minute)
	need(t, "python3")
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	const program = "import os, socket, subprocess, sys, time\n" +
		"s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 16)\n" +
		"f = os.open(sys.argv[2], os.O_RDWR)\n" +
		"c = subprocess.Popen(['sleep', '1000'])\n" +
		"print('ready', flush=True)\n" +
		"time.sleep(1000)"
	before, err := bed.Traces()
	if err != nil {
		t.Fatal(err)
	}
	p, err := bed.Start(ctx, "host-a", "python3", "-c", program, "$ASK", fifo)
	if err != nil {
		t.Fatal(err)
	}
	var c migrate.Check
	code, stderr, err := bed.Run(ctx, &c, "check", fmt.Sprint(p.PID), "--from", "host-a", "--to", "host-b")
	if err != nil || code != 2 || c.Movable {
		t.Fatalf("exit code %d, %v, movable %v: %s", code, err, c.Movable, stderr)
	}
	found := make(map[migrate.Code]int)
	for _, b := range c.Blockers {
		found[b.Code]++
	}
	if found[migrate.CodeChildren] == 0 || found[migrate.CodeDescriptor] < 2 {
		t.Errorf("a child, a socket and a FIFO stand in the way; it says %v", c.Blockers)
	}
	on(ctx, t, "host-a", "sh", "-c", fmt.Sprintf("kill -9 $(cat /proc/%d/task/%d/children) %d", p.PID, p.PID, p.PID))
	nothingLeft(ctx, t, before)
}

// TestRehearsals rehearses often enough that each of the program's waits has
// been interrupted: it must not notice.
func TestRehearsals(t *testing.T) {
	const rehearsals = 100
	ctx := limit(t, 4*time.Minute)
	p := start(ctx, t, "host-a", "$BIN/workload", "epoll", "-file", "$DIR/watched", "-ask", "$ASK")
	for i := range rehearsals {
		r, err := bed.Move(ctx, p, "host-b", "--rehearse")
		if err != nil {
			t.Fatal(err)
		}
		if r.State != migrate.StateRehearsed || r.Code != 0 {
			t.Fatalf("rehearsal %d: %s, exit code %d: %s%s", i, r.State, r.Code, r.Stderr, bed.Logs("host-a", "host-b"))
		}
	}
	alone(t, p)
	content(ctx, t, p)
}

// TestArrivedProcessOutlivesItsAgent stops and starts agents around a process.
func TestArrivedProcessOutlivesItsAgent(t *testing.T) {
	ctx := limit(t, time.Minute)
	p := start(ctx, t, "host-a", "$BIN/workload", "memory", "-size", "8MiB", "-ask", "$ASK")
	moved(ctx, t, p, "host-b")
	if got := on(ctx, t, "host-b", "sh", "-c", fmt.Sprintf("cut -d' ' -f4 /proc/%d/stat", p.PID)); got != "1" {
		t.Errorf("its parent is process %s", got)
	}
	agent := host(t, "host-b").Daemon("agent")
	group := func(pid int) string {
		for line := range strings.Lines(on(ctx, t, "host-b", "cat", fmt.Sprintf("/proc/%d/cgroup", pid))) {
			if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
				return path
			}
		}
		return ""
	}
	if its, theirs := group(p.PID), group(agentPID(ctx, t, "host-b")); its == "" || theirs == "" || strings.HasPrefix(its+"/", theirs+"/") {
		t.Errorf("its control group is %q, the agent's %q", its, theirs)
	}
	if err := agent.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	alone(t, p)
	content(ctx, t, p)
	if err := agent.Start(ctx); err != nil {
		t.Fatal(err)
	}
	alone(t, p)
	agentAnswers(ctx, t, "host-b")
	moved(ctx, t, p, "host-c")
	content(ctx, t, p)
}

// refused asks for a move that is refused for one reason.
func refused(ctx context.Context, t *testing.T, p *testbed.Process, to string, want migrate.Code) {
	t.Helper()
	r, err := bed.Move(ctx, p, to)
	if err != nil {
		t.Fatal(err)
	}
	if r.Code != 2 || r.State != migrate.StateRefused || len(r.Blockers) != 1 || r.Blockers[0].Code != want {
		t.Fatalf("exit code %d, %s, blockers %v; want 2, REFUSED, %s", r.Code, r.State, r.Blockers, want)
	}
	if strings.Count(r.Stderr, "\n") != 1 || !strings.Contains(r.Stderr, string(want)) {
		t.Errorf("it does not say so in one line: %q", r.Stderr)
	}
	t.Log(strings.TrimSpace(r.Stderr))
}

func host(t *testing.T, name string) *lab.Host {
	t.Helper()
	h, err := bed.Lab.Host(name)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// on runs a command on a host.
func on(ctx context.Context, t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := host(t, name).Exec(ctx, args...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// end kills a process and waits until it is gone.
func end(ctx context.Context, t *testing.T, name string, pid int) {
	t.Helper()
	h := host(t, name)
	if err := h.Kill(ctx, pid, unix.SIGKILL); err != nil {
		t.Error(err)
	}
	if err := testbed.Await(ctx, "the end of a process", func() (bool, error) { return h.Kill(ctx, pid, 0) != nil, nil }); err != nil {
		t.Error(err)
	}
}

// detached asks for a move and returns its id.
func detached(ctx context.Context, t *testing.T, p *testbed.Process, to string, flags ...string) string {
	t.Helper()
	var r migrate.Report
	args := append([]string{"move", fmt.Sprint(p.PID), "--from", p.Host, "--to", to, "--detach"}, flags...)
	if code, stderr, err := bed.Run(ctx, &r, args...); err != nil || code != 0 {
		t.Fatalf("exit code %d, %v: %s", code, err, stderr)
	}
	return r.ID
}

// show asks for a migration.
func show(ctx context.Context, t *testing.T, id string) migrate.Report {
	t.Helper()
	var r migrate.Report
	if code, stderr, err := bed.Run(ctx, &r, "show", id); err != nil || code != 0 {
		t.Fatalf("exit code %d, %v: %s", code, err, stderr)
	}
	return r
}

// settled waits until a migration is over and nothing is left to do on any side.
func settled(ctx context.Context, t *testing.T, id string) migrate.Report {
	t.Helper()
	var r migrate.Report
	err := testbed.Await(ctx, "migration "+id+" to be settled", func() (bool, error) {
		r = show(ctx, t, id)
		return r.Settled, nil
	})
	if err != nil {
		t.Fatalf("%v; it is %s: %s%s", err, r.State, r.Reason, bed.Logs("host-a", "host-b", "host-c"))
	}
	return r
}

// agentAnswers waits until a host takes orders again.
func agentAnswers(ctx context.Context, t *testing.T, name string) {
	t.Helper()
	err := testbed.Await(ctx, name+" to answer", func() (bool, error) {
		code, _, err := bed.Run(ctx, nil, "ps", "--host", name)
		return code == 0, err
	})
	if err != nil {
		t.Fatal(err)
	}
}
