package source

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/migrate/freezer"
	"github.com/pagurus-project/pagurus/migrate/procfs"
	"github.com/pagurus-project/pagurus/pageserver"
	"github.com/pagurus-project/pagurus/parasite/parasitetest"
)

func TestMain(m *testing.M) {
	parasitetest.Main()
	if kind := os.Getenv(victimKind); kind != "" {
		runVictim(kind)
	}
	if os.Getenv(agentOrders) != "" {
		runAgent()
	}
	os.Exit(m.Run())
}

func newHost(t testing.TB) *Host {
	t.Helper()
	parasitetest.NeedRoot(t)
	h, err := New(t.Context(), HostConfig{Own: func(pid int) bool { return pid == os.Getpid() }})
	if err != nil {
		t.Fatal(err)
	}
	if h.Slow != nil {
		t.Logf("slow here: %v", h.Slow)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

// recorder hears what a migration tells.
type recorder struct {
	mu       sync.Mutex
	progress []migrate.Progress
	frozen   int
	promised []Measured
	onFrozen func()
	refuse   error
}

func (r *recorder) Progress(p migrate.Progress) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.progress = append(r.progress, p)
}

func (r *recorder) Unfrozen() {}

func (r *recorder) Frozen() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.frozen++
	if r.onFrozen != nil {
		r.onFrozen()
	}
}

func (r *recorder) Promise(m Measured) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.promised = append(r.promised, m)
	return r.refuse
}

// before is what of a victim must be the same after a migration that came to nothing.
type before struct {
	group    string
	fds      []int
	mappings ranges
}

func look(t testing.TB, h *Host, pid int) before {
	t.Helper()
	group, err := freezer.Of(h.config.CgroupRoot, pid)
	if err != nil {
		t.Fatal(err)
	}
	fds, err := procfs.Process{PID: pid}.FDs()
	if err != nil {
		t.Fatal(err)
	}
	return before{group.Dir(), fds, nil}
}

// untouched checks that a victim runs as if nothing had happened to it.
func (b before) untouched(t testing.TB, h *Host, pid int) {
	t.Helper()
	now := look(t, h, pid)
	if now.group != b.group {
		t.Errorf("process is in group %s instead of %s", now.group, b.group)
	}
	if !slices.Equal(now.fds, b.fds) {
		t.Errorf("process has descriptors %v instead of %v", now.fds, b.fds)
		for _, fd := range now.fds {
			link, err := procfs.Process{PID: pid}.Link(fmt.Sprintf("fd/%d", fd))
			t.Logf("%d is %s (%v)", fd, link, err)
		}
	}
	entries, err := os.ReadDir(b.group)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), groupPrefix+testName(t)) {
			t.Errorf("control group %s is left over", e.Name())
		}
	}
	status, err := procfs.Process{PID: pid}.Status()
	if err != nil {
		t.Fatal(err)
	}
	if status.TracerPID != 0 {
		t.Errorf("process is still traced by %d", status.TracerPID)
	}
	smaps, err := procfs.Process{PID: pid}.Smaps()
	if err != nil {
		t.Fatal(err)
	}
	for start, flags := range smaps {
		if flags.Has("uw") || flags.Has("um") {
			t.Errorf("mapping at %#x is still tracked", start)
		}
	}
}

// testName names migrations and so their control groups, apart from those of
// other runs of the tests.
func testName(t testing.TB) string {
	return fmt.Sprintf("%s-%d", strings.ReplaceAll(t.Name(), "/", "-"), os.Getpid())
}

// start starts a migration of a victim.
func start(t testing.TB, h *Host, pid int, o migrate.Options) *Migration {
	t.Helper()
	m, err := h.Start(t.Context(), Config{
		Migration: testName(t), Epoch: 1, PID: pid, Options: o, Token: []byte("token"),
		Save: func(p Plan) error {
			_, err := json.Marshal(p)
			return err
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := m.Resume(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return m
}

// inspection is the configuration of a look at a process.
func inspection(pid int) Config {
	return Config{Migration: fmt.Sprintf("inspection-%d", pid), PID: pid, Save: func(Plan) error { return nil }}
}

func TestInspect(t *testing.T) {
	h := newHost(t)
	v := startVictim(t, "churn")
	was := look(t, h, v.pid)
	for range 5 {
		in, err := h.Inspect(t.Context(), inspection(v.pid))
		if err != nil {
			t.Fatal(err)
		}
		if len(in.Blockers) > 0 || in.Inventory == nil {
			t.Errorf("blockers %v", in.Blockers)
		}
		if len(in.Tree) != 1 || in.Tree[0].PID != v.pid || in.Tree[0].Threads < 3 {
			t.Errorf("tree %+v", in.Tree)
		}
		if err := in.Inventory.Validate(); err != nil {
			t.Error(err)
		}
	}
	was.untouched(t, h, v.pid)
	v.finish()
}

// kernelThread is a thread of the kernel's.
func kernelThread(t *testing.T) int {
	t.Helper()
	for pid := 2; pid < 1000; pid++ {
		if stat, err := (procfs.Process{PID: pid}).Stat(); err == nil && stat.KernelThread() {
			return pid
		}
	}
	t.Skip("no kernel thread can be seen from here")
	return 0
}

// A process that ends while it is looked at is one that has vanished.
func TestInspectVanished(t *testing.T) {
	h := newHost(t)
	v := startVictim(t, "idle")
	c := inspection(v.pid)
	c.Save = func(Plan) error { return unix.Kill(v.pid, unix.SIGKILL) }
	in, err := h.Inspect(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if len(in.Blockers) != 1 || in.Blockers[0].Code != migrate.CodeProcessVanished {
		t.Errorf("%v instead of %s", in.Blockers, migrate.CodeProcessVanished)
	}
}

func TestInspectRefuses(t *testing.T) {
	h := newHost(t)
	v := startVictim(t, "idle")
	threads, err := procfs.Process{PID: v.pid}.Threads()
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		pid  int
		code migrate.Code
	}{
		{0, migrate.CodeNoSuchProcess},
		{-1, migrate.CodeNoSuchProcess},
		{1 << 22, migrate.CodeNoSuchProcess},
		{threads[len(threads)-1], migrate.CodeNoSuchProcess},
		{1, migrate.CodeInit},
		{os.Getpid(), migrate.CodeOwnDaemon},
		{kernelThread(t), migrate.CodeKernelThread},
	} {
		in, err := h.Inspect(t.Context(), inspection(test.pid))
		if err != nil {
			t.Fatal(err)
		}
		if len(in.Blockers) != 1 || in.Blockers[0].Code != test.code || in.Inventory != nil {
			t.Errorf("process %d: %v instead of %s", test.pid, in.Blockers, test.code)
		}
		if _, err := h.Start(t.Context(), Config{Migration: "x", PID: test.pid, Save: func(Plan) error { return nil }}); err == nil {
			t.Errorf("process %d: migration starts", test.pid)
		}
	}
}

// One thread in a sandbox is enough to refuse a process, whoever it belongs to.
func TestSandboxed(t *testing.T) {
	const version = 1 // LANDLOCK_CREATE_RULESET_VERSION
	if _, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, version); errno != 0 {
		t.Skip("no Landlock on this kernel: ", errno)
	}
	h := newHost(t)
	v := startVictim(t, "sandboxed")
	in, err := h.Inspect(t.Context(), inspection(v.pid))
	if err != nil {
		t.Fatal(err)
	}
	if len(in.Blockers) != 1 || in.Blockers[0].Code != migrate.CodeProcessState {
		t.Errorf("blockers %v", in.Blockers)
	}
	v.finish()
}

// The memory of a process that does everything at once arrives as it is.
func TestReplica(t *testing.T) {
	h := newHost(t)
	v := startVictim(t, "churn")
	m := start(t, h, v.pid, migrate.Options{Verify: true, MaxRounds: 8})
	r, events := newReplica(), &recorder{}
	if err := m.Run(t.Context(), r.connect(t), events); err != nil {
		t.Fatal(err)
	}
	r.compare(t, v.pid)
	for i, o := range m.objects {
		r.compareObject(t, i, o.file)
	}
	checkVerify(t, r)
	if r.rounds < 3 || events.frozen != 1 || len(events.promised) != 1 {
		t.Errorf("%d rounds, %d times frozen, %d promises", r.rounds, events.frozen, len(events.promised))
	}
	c := events.promised[0]
	if c.Downtime <= 0 || c.Bytes == 0 || c.WireBytes == 0 || len(c.Rounds) != r.rounds || !c.Rounds[r.rounds-1].Frozen {
		t.Errorf("measured %+v", c)
	}
	for _, phase := range []string{migrate.PhasePrecopy, migrate.PhaseStop, migrate.PhaseDump, migrate.PhaseTransfer} {
		if c.PhasesMS[phase] <= 0 {
			t.Errorf("phase %s took %v", phase, c.PhasesMS[phase])
		}
	}
	t.Logf("%d rounds, downtime %v, %v", r.rounds, c.Downtime, c.PhasesMS)
	// As if another round was known, and not begun with.
	m.gauges.round, m.gauges.pages = m.gauges.round+1, 1
	if p := m.progress(time.Now()); p.Round != r.rounds || p.RoundSent != 0 {
		t.Errorf("before round %d: %+v", r.rounds, p)
	}
	if err := m.Dispose(t.Context()); err != nil {
		t.Error(err)
	}
	if err := r.wait(); err != nil {
		t.Error(err)
	}
	v.ended = true // and collected by its tracer, since that is its parent here
	if err := unix.Kill(v.pid, 0); !errors.Is(err, unix.ESRCH) {
		t.Errorf("the victim is still there: %v", err)
	}
	if _, err := os.Stat(m.group.Dir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("group is left over: %v", err)
	}
}

// checkVerify sums up the replica as a destination does.
func checkVerify(t testing.TB, r *replica) {
	t.Helper()
	v := r.verify
	if v == nil || len(v.Runs) == 0 {
		t.Fatal("nothing to verify by")
	}
	runs := make([]pageserver.Run, len(v.Runs))
	for i, run := range v.Runs {
		runs[i] = pageserver.Run{Space: pageserver.SpaceID(run.Space), Range: pageserver.Range{First: pageserver.PageNo(run.First), Pages: run.Pages}}
	}
	theirs := make([]pageserver.Digest, len(v.Digests))
	for i, d := range v.Digests {
		theirs[i] = pageserver.Digest(d)
	}
	ours, err := pageserver.DigestChunks(t.Context(), shown{r}, runs, v.ChunkPages)
	if err != nil {
		t.Fatal(err)
	}
	if differ, err := pageserver.Differing(runs, v.ChunkPages, theirs, ours); err != nil || len(differ) > 0 {
		t.Errorf("verifying: %v, %v", differ, err)
	}
}
