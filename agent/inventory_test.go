package agent

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/migrate/procfs"
	migratev1 "github.com/pagurus-project/pagurus/proto/migrate/v1"
)

// child runs a program until the test ends.
func child(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(name, args...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd
}

func (c *cluster) inspect(t *testing.T, pid int) *migratev1.InspectResponse {
	t.Helper()
	resp, err := c.a.orders.Inspect(t.Context(), &migratev1.InspectRequest{Pid: int32(pid)})
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

func codesOf(resp *migratev1.InspectResponse) []string {
	var list []string
	for _, b := range resp.GetBlockers() {
		list = append(list, b.GetCode())
	}
	return list
}

// TestInspectSeesAtOnce what cannot be moved, without touching it: the engine
// is not asked.
func TestInspectSeesAtOnce(t *testing.T) {
	c := newCluster(t)
	c.a.blockers = []migrate.Finding{{Code: "asked", Detail: "the engine"}}
	check := func(pid int, code migrate.Code, detail string) {
		t.Helper()
		resp := c.inspect(t, pid)
		if got := codesOf(resp); !slices.Equal(got, []string{string(code)}) || !strings.Contains(resp.GetBlockers()[0].GetDetail(), detail) {
			t.Errorf("process %d: %v, want %s: %s", pid, resp.GetBlockers(), code, detail)
		}
		if resp.GetBlockers()[0].GetHint() == "" || len(resp.GetInventory()) > 0 {
			t.Errorf("process %d: no hint, or an inventory: %v", pid, resp)
		}
	}
	check(pid, migrate.CodeNoSuchProcess, "there is no process 4000001 on host-a")
	check(0, migrate.CodeNoSuchProcess, "there is no process 0 on host-a")
	check(-1, migrate.CodeNoSuchProcess, "there is no process -1 on host-a")
	check(1, migrate.CodeInit, "init process of host-a")
	check(os.Getpid(), migrate.CodeOwnDaemon, "carries out migrations")
	sleep := child(t, "sleep", "1000").Process.Pid

	// A thread has a directory in /proc, too.
	threads, err := procfs.Process{PID: os.Getpid()}.Threads()
	if err != nil || len(threads) < 2 {
		t.Fatalf("threads %v, %v", threads, err)
	}
	check(threads[1], migrate.CodeNoSuchProcess, "is a thread of process")

	// One that has ended and was not waited for.
	ended := child(t, "true")
	var info unix.Siginfo
	if err := unix.Waitid(unix.P_PID, ended.Process.Pid, &info, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	check(ended.Process.Pid, migrate.CodeZombie, "has exited")

	// A daemon of ours by its name.
	own := filepath.Join(t.TempDir(), "migrate-coordinator")
	program, err := os.ReadFile("/bin/sleep")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(own, program, 0o755); err != nil {
		t.Fatal(err)
	}
	check(child(t, own, "1000").Process.Pid, migrate.CodeOwnDaemon, "carries out migrations")

	// Whoever has a debugger.
	traced := make(chan error)
	untrace := make(chan struct{})
	go func() {
		runtime.LockOSThread() // for good: it is untraced by the end of this thread
		traced <- unix.PtraceSeize(sleep)
		<-untrace
	}()
	if err := <-traced; err == nil {
		check(sleep, migrate.CodeTraced, "is traced by process")
	} else if !errors.Is(err, unix.EPERM) {
		t.Error(err)
	}
	close(untrace)
}

// TestKernelThread needs one to look at, which not every container shows.
func TestKernelThread(t *testing.T) {
	pids, err := procfs.All()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(pids, func(pid int) bool {
		s, err := procfs.Process{PID: pid}.Stat()
		return err == nil && s.KernelThread()
	})
	if i < 0 {
		t.Skip("no kernel threads can be seen here")
	}
	c := newCluster(t)
	if got := codesOf(c.inspect(t, pids[i])); !slices.Equal(got, []string{"kernel-thread"}) {
		t.Errorf("blockers %v", got)
	}
	list, err := c.a.orders.ListProcesses(t.Context(), &migratev1.ListProcessesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range list.GetProcesses() {
		if int(p.GetPid()) == pids[i] {
			t.Errorf("the kernel thread %v can be moved, as the list has it", p)
		}
	}
}

// TestInspect asks the engine, if the process is not in a migration already.
func TestInspect(t *testing.T) {
	c := newCluster(t)
	sleep := child(t, "sleep", "1000").Process.Pid
	resp := c.inspect(t, sleep)
	if len(resp.GetInventory()) == 0 || len(resp.GetBlockers()) > 0 {
		t.Errorf("got %v", resp)
	}
	c.a.blockers = []migrate.Finding{{Code: "asked", Detail: "the engine"}}
	if got := codesOf(c.inspect(t, sleep)); !slices.Equal(got, []string{"asked"}) {
		t.Errorf("blockers %v", got)
	}
	c.a.failing["inspect"] = 1
	_, err := c.a.orders.Inspect(t.Context(), &migratev1.InspectRequest{Pid: int32(sleep)})
	mustCode(t, err, codes.Internal)

	// In a migration: for itself it is not in its own way.
	m := c.newMove("m1")
	c.a.mu.Lock() // what the last look has left may still be undone
	c.a.processes[sleep] = "running"
	c.a.mu.Unlock()
	g := c.a.gate("start")
	m.reserve()
	req := m.startRequest()
	req.Pid = int32(sleep)
	if _, err := c.a.orders.Start(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	g.reach(t)
	busy := c.inspect(t, sleep)
	if got := codesOf(busy); !slices.Equal(got, []string{string(migrate.CodeBusy)}) || !strings.Contains(busy.GetBlockers()[0].GetDetail(), "migration m1") {
		t.Errorf("blockers %v", busy.GetBlockers())
	}
	own, err := c.a.orders.Inspect(t.Context(), &migratev1.InspectRequest{Ref: m.ref, Pid: int32(sleep)})
	if err != nil || !slices.Equal(codesOf(own), []string{"asked"}) {
		t.Errorf("got %v, %v", own, err)
	}
	list, err := c.a.orders.ListProcesses(t.Context(), &migratev1.ListProcessesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(list.GetProcesses(), func(p *migratev1.Process) bool { return int(p.GetPid()) == sleep })
	if i < 0 || list.GetProcesses()[i].GetMigration() != "m1" {
		t.Errorf("process %d is %v", sleep, list.GetProcesses())
	}
}

// TestInspectionIsUndone: what a look has left is undone however often that fails,
// and nobody else looks at the process before.
func TestInspectionIsUndone(t *testing.T) {
	for _, restarted := range []bool{false, true} {
		t.Run(fmt.Sprintf("restarted=%v", restarted), func(t *testing.T) {
			c := newCluster(t)
			sleep := child(t, "sleep", "1000").Process.Pid
			c.a.mu.Lock()
			c.a.processes[sleep] = "running"
			c.a.failing["inspect"], c.a.failing["recover"], c.a.failing["resume"] = 1, 2, 3
			c.a.mu.Unlock()
			if restarted {
				g := c.a.gate("inspect")
				go func() {
					_, _ = c.a.orders.Inspect(context.WithoutCancel(t.Context()), &migratev1.InspectRequest{Pid: int32(sleep)})
				}()
				g.reach(t)
				c.a.kill()
				c.a.start()
			} else if _, err := c.a.orders.Inspect(t.Context(), &migratev1.InspectRequest{Pid: int32(sleep)}); err == nil {
				t.Error("the look has not failed")
			}
			if resp := c.inspect(t, sleep); len(resp.GetBlockers()) > 0 {
				t.Errorf("the next look: %v", resp)
			}
			c.a.mu.Lock()
			defer c.a.mu.Unlock()
			if left := c.a.failing; left["recover"] > 0 || left["resume"] > 0 {
				t.Errorf("the next look did not wait: %v", left)
			}
			left, err := os.ReadDir(filepath.Join(c.a.dir, "inspections"))
			if err != nil || len(left) > 0 {
				t.Errorf("the journal has %v, %v", left, err)
			}
		})
	}
}

// TestLooksWaitForEachOther: two orders never have their hands on one process.
func TestLooksWaitForEachOther(t *testing.T) {
	l := newLooks()
	free, err := l.claim(t.Context(), 7)
	if err != nil {
		t.Fatal(err)
	}
	other, err := l.claim(t.Context(), 8)
	if err != nil {
		t.Fatal(err)
	}
	other()
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := l.claim(ctx, 7); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("claimed twice: %v", err)
	}
	claimed := make(chan func())
	go func() {
		again, err := l.claim(t.Context(), 7)
		if err != nil {
			t.Error(err)
		}
		claimed <- again
	}()
	free()
	(<-claimed)()
	if len(l.held) > 0 {
		t.Errorf("still held: %v", l.held)
	}
}

func TestListProcesses(t *testing.T) {
	c := newCluster(t)
	sleep := child(t, "sleep", "1000").Process.Pid
	list, err := c.a.orders.ListProcesses(t.Context(), &migratev1.ListProcessesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, p := range list.GetProcesses() {
		switch int(p.GetPid()) {
		case 1, os.Getpid():
			t.Errorf("%v is in the list", p)
		case sleep:
			found = true
			if p.GetCommand() != "sleep 1000" || p.GetThreads() != 1 || int(p.GetPpid()) != os.Getpid() || p.GetResidentBytes() == 0 || p.GetUid() != uint32(os.Getuid()) || p.GetMigration() != "" {
				t.Errorf("it is listed as %v", p)
			}
		}
	}
	if !found {
		t.Errorf("process %d is not in the list", sleep)
	}
	// This program has sockets.
	self, kernel, err := process(os.Getpid())
	if err != nil || kernel || self.Sockets < 3 {
		t.Errorf("this process is %+v, %v, %v", self, kernel, err)
	}
}

func TestDescribe(t *testing.T) {
	c := newCluster(t)
	got, err := c.b.orders.Describe(t.Context(), &migratev1.DescribeRequest{})
	if err != nil {
		t.Fatal(err)
	}
	kernel, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		t.Fatal(err)
	}
	if got.GetHost() != "host-b" || got.GetKernel() != strings.TrimSpace(string(kernel)) || got.GetAgentVersion() != "test" ||
		int(got.GetCpus()) != runtime.NumCPU() || got.GetFreeBytes() == 0 || got.GetMemoryBytes() < got.GetFreeBytes() || got.GetMigrations() != 0 {
		t.Errorf("got %v", got)
	}
	m := c.newMove("m1")
	m.reserve()
	if got, err := c.b.orders.Describe(t.Context(), &migratev1.DescribeRequest{}); err != nil || got.GetMigrations() != 1 {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestCommandLine(t *testing.T) {
	for in, want := range map[string]string{
		"":                       "",
		"sleep\x001000\x00":      "sleep 1000",
		"a\x1b[31mb\nc\x00":      "a [31mb c",
		"caf\xc3\xa9 \xff\x00":   "café",
		strings.Repeat("x", 300): strings.Repeat("x", maxCommandBytes) + "...",
	} {
		if got := commandLine([]byte(in)); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func FuzzCommandLine(f *testing.F) {
	f.Add([]byte("sleep\x001000\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		got := commandLine(data)
		if len(got) > maxCommandBytes+3 || strings.ContainsFunc(got, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			t.Errorf("%q becomes %q", data, got)
		}
	})
}

func TestParseLoadavg(t *testing.T) {
	if load, err := parseLoadavg([]byte("1.25 0.60 0.40 2/700 1234\n")); load != 1.25 || err != nil {
		t.Errorf("got %v, %v", load, err)
	}
	for _, bad := range []string{"", "many", "NaN 0.60 0.40 2/700 1234\n", "-1 0 0", "+Inf"} {
		if load, err := parseLoadavg([]byte(bad)); err == nil {
			t.Errorf("%q was read as %v", bad, load)
		}
	}
}

func FuzzParseLoadavg(f *testing.F) {
	f.Add([]byte("1.25 0.60 0.40 2/700 1234\n"))
	f.Add([]byte("nan"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if load, err := parseLoadavg(data); err == nil && !(load >= 0 && load <= math.MaxUint32) {
			t.Errorf("%q: a load of %v", data, load)
		}
	})
}
