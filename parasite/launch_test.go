package parasite_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/parasite"
	"github.com/pagurus-project/pagurus/parasite/parasitetest"
)

func launch(t *testing.T) *parasite.Process {
	t.Helper()
	p, err := newTracer(t).Launch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestLaunch(t *testing.T) {
	p := launch(t)
	if fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", p.PID())); err != nil || len(fds) != 0 {
		t.Errorf("descriptors of a launched process: %v, %v", fds, err)
	}
	callBatch(t, p, p.PID())
	callSingly(t, p, p.PID())

	// A batch of many calls, and the scratch memory at another place.
	if err := p.MoveScratch(t.Context(), 0x7000_0000); err != nil {
		t.Fatal(err)
	}
	b := leader(p).Batch(t.Context())
	for range 1000 {
		b.Call(unix.SYS_GETPID)
	}
	if err := b.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i := range 1000 {
		if got, err := b.Result(i); err != nil || int(got) != p.PID() {
			t.Fatalf("call %d: %d, %v", i, got, err)
		}
	}
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", p.PID()))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(maps), "70000000-70001000 r-xp") || strings.Contains(string(maps), "00011000-") {
		t.Errorf("scratch memory has not moved:\n%s", maps)
	}
}

// freePID is the first of ten ids that no process has.
func freePID(t *testing.T) int {
	t.Helper()
	limit, err := os.ReadFile("/proc/sys/kernel/pid_max")
	if err != nil {
		t.Fatal(err)
	}
	var most int
	if _, err := fmt.Sscan(string(limit), &most); err != nil {
		t.Fatal(err)
	}
	free := 0
	for pid := most - 1; pid > 300; pid-- {
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err == nil {
			free = 0
		} else if free++; free == 10 {
			return pid
		}
	}
	t.Fatal("no free PIDs")
	return 0
}

func TestCloneWithChosenIDs(t *testing.T) {
	p := launch(t)
	pid := freePID(t)
	child, err := p.CloneProcess(t.Context(), parasite.CloneArgs{TID: pid, ExitSignal: unix.SIGCHLD})
	if err != nil {
		t.Fatal(err)
	}
	if child.PID() != pid {
		t.Fatalf("child has PID %d instead of %d", child.PID(), pid)
	}
	getsTID := func(thread *parasite.Thread, want int) {
		t.Helper()
		if got, err := thread.Syscall(t.Context(), unix.SYS_GETTID); err != nil || int(got) != want {
			t.Errorf("gettid in %d: %d, %v", want, got, err)
		}
	}
	getsTID(leader(child), pid)
	for _, tid := range []int{pid + 7, pid + 3} {
		thread, err := child.CloneThread(t.Context(), tid)
		if err != nil {
			t.Fatal(err)
		}
		getsTID(thread, tid)
	}
	if _, err := child.CloneThread(t.Context(), pid+3); !errors.Is(err, unix.EEXIST) {
		t.Errorf("making a thread whose id is taken: %v", err)
	}
	if _, err := p.CloneProcess(t.Context(), parasite.CloneArgs{TID: os.Getpid(), ExitSignal: unix.SIGCHLD}); !errors.Is(err, unix.EEXIST) {
		t.Errorf("making a process whose id is taken: %v", err)
	}
	getsTID(leader(child), pid)
}

// What is half built must not outlive its builder.
func TestLaunchedDiesWithTracer(t *testing.T) {
	parasitetest.NeedRoot(t)
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestHelperLaunchAndHang$", "-test.v")
	cmd.Env = append(os.Environ(), "PAGURUS_LAUNCH_AND_HANG=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pid, child int
	for {
		var word string
		if _, err := fmt.Fscan(out, &word); err != nil {
			t.Fatalf("no PIDs from the helper: %v", err)
		}
		if word == "launched" {
			break
		}
	}
	if _, err := fmt.Fscan(out, &pid, &child); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	for _, pid := range []int{pid, child} {
		awaitGone(t, pid)
	}
}

func TestHelperLaunchAndHang(t *testing.T) {
	if os.Getenv("PAGURUS_LAUNCH_AND_HANG") == "" {
		t.Skip("only for TestLaunchedDiesWithTracer")
	}
	p := launch(t)
	child, err := p.CloneProcess(t.Context(), parasite.CloneArgs{ExitSignal: unix.SIGCHLD})
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(os.Stdout, "launched", p.PID(), child.PID())
	select {}
}

// awaitGone waits until a process is dead.
func awaitGone(t *testing.T, pid int) {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err == unix.ESRCH || err == unix.EINVAL { // the latter while it is being reaped
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	if n, err := unix.Poll(poll, 10_000); err != nil || n != 1 {
		t.Fatalf("process %d is still there (%v)", pid, err)
	}
}
