package source

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/migrate/freezer"
	"github.com/pagurus-project/pagurus/migrate/procfs"
	"github.com/pagurus-project/pagurus/parasite"
)

// agentOrders makes the started test binary an agent: a file with its orders.
const agentOrders = "PAGURUS_SOURCE_AGENT"

type agentJob struct {
	Migration string
	PID       int
	Address   string // of the destination
	Plan      string // where the plan is kept
	Do        string
}

// What an agent does until it is killed.
const (
	doMove     = "move" // up to the promise, for ever
	doRehearse = "rehearse"
	doInspect  = "inspect" // again and again
)

// runAgent moves a process until it is killed.
func runAgent() {
	if err := actAsAgent(); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(1)
}

func actAsAgent() error {
	text, err := os.ReadFile(os.Getenv(agentOrders))
	if err != nil {
		return err
	}
	var job agentJob
	if err := json.Unmarshal(text, &job); err != nil {
		return err
	}
	ctx := context.Background()
	h, err := New(ctx, HostConfig{})
	if err != nil {
		return err
	}
	c := Config{
		Migration: job.Migration, PID: job.PID, Token: []byte("token"), Options: migrate.Options{Rehearse: job.Do == doRehearse},
		Save: func(p Plan) error { return savePlan(job.Plan, p) },
	}
	if job.Do == doInspect {
		fmt.Fprintln(os.Stdout, "start")
		for {
			if _, err := h.Inspect(ctx, c); err != nil {
				return err
			}
			if err := os.Remove(job.Plan); err != nil {
				return err
			}
		}
	}
	m, err := h.Start(ctx, c)
	if err != nil {
		return err
	}
	conn, err := net.Dial("tcp", job.Address)
	if err != nil {
		return err
	}
	fmt.Fprintln(os.Stdout, "start")
	for {
		err := m.Run(ctx, conn, &recorder{})
		fmt.Fprintln(os.Stdout, "run", err)
		if job.Do != doRehearse {
			_, _ = io.Copy(io.Discard, os.Stdin) // for ever
		}
		if _, err := m.Resume(ctx); err != nil {
			return err
		}
		fmt.Fprintln(os.Stdout, "resumed")
		_, _ = io.Copy(io.Discard, os.Stdin)
	}
}

func savePlan(path string, p Plan) error {
	text, err := json.Marshal(p)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", text, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

func loadPlan(path string) (plan Plan, found bool, err error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return plan, false, nil
	}
	if err != nil {
		return plan, false, err
	}
	return plan, true, json.Unmarshal(text, &plan)
}

// An agent that is killed at any moment leaves a process that runs, or that the
// next agent can let run; nothing of the migration is left on it.
func TestAgentKilled(t *testing.T) {
	h := newHost(t)
	v := startVictim(t, "churn")
	was := look(t, h, v.pid)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	states := make(map[string]int)
	executable := countExecutable(t, v.pid)
	for i := range 18 {
		plan := filepath.Join(t.TempDir(), "plan")
		job := agentJob{Migration: fmt.Sprintf("%s-%d", testName(t), i), PID: v.pid, Plan: plan, Do: []string{doMove, doRehearse, doInspect}[i%3]}
		killAgent(t, job, time.Duration(random.Int64N(int64(250*time.Millisecond))))
		p, found, err := loadPlan(plan)
		if err != nil {
			t.Fatal(err)
		}
		if !found {
			states["untouched"]++
			continue
		}
		m, err := h.Recover(t.Context(), p, func(p Plan) error { return savePlan(plan, p) })
		if err != nil {
			t.Fatal(err)
		}
		frozen, err := m.group.Frozen()
		if err != nil {
			t.Fatal(err)
		}
		states[fmt.Sprintf("%s frozen=%v at=%v", job.Do, frozen, p.FrozenAt != 0)]++
		resumed, err := m.Resume(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if resumed.KilledAtSource || resumed.Downtime > 0 != (p.FrozenAt != 0) {
			t.Errorf("resumed %+v by plan %+v", resumed, p)
		}
		was.untouched(t, h, v.pid)
		if _, err := os.Stat(p.Group); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("group is left over: %v", err)
		}
		if now := countExecutable(t, v.pid); now > executable {
			t.Fatalf("executable memory is left over by plan %+v", p)
		}
	}
	t.Logf("killed in these states: %v", states)
	v.finish()
}

// killAgent starts an agent and kills it some time after it has begun.
func killAgent(t *testing.T, job agentJob, after time.Duration) {
	t.Helper()
	r := newReplica()
	job.Address = r.listen(t)
	text, err := json.Marshal(job)
	if err != nil {
		t.Fatal(err)
	}
	orders := job.Plan + ".job"
	if err := os.WriteFile(orders, text, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), agentOrders+"="+orders)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil || line != "start\n" {
		t.Fatalf("agent says %q (%v)", line, err)
	}
	<-time.After(after)
	if err := cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait()
	if job.Do != doInspect {
		<-r.ended
	}
}

// countExecutable counts mappings like those that remote calls are made from.
func countExecutable(t *testing.T, pid int) (n int) {
	t.Helper()
	vmas, err := procfs.Process{PID: pid}.Maps()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range vmas {
		if m.Prot == unix.PROT_READ|unix.PROT_EXEC && m.Name == "" {
			n++
		}
	}
	return n
}

// A victim whose frozen copy an agent has left behind after the promise can be
// disposed of by the next one.
func TestDisposeRecovered(t *testing.T) {
	h := newHost(t)
	v := startVictim(t, "idle")
	plan := filepath.Join(t.TempDir(), "plan")
	r := newReplica()
	m, err := h.Start(t.Context(), Config{
		Migration: testName(t), PID: v.pid, Token: []byte("token"),
		Save: func(p Plan) error { return savePlan(plan, p) },
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Run(t.Context(), r.connect(t), &recorder{}); err != nil {
		t.Fatal(err)
	}
	// As if the agent had died: its threads are gone, and nothing else happens.
	for _, p := range m.processes {
		if err := p.release(); err != nil {
			t.Fatal(err)
		}
	}
	p, found, err := loadPlan(plan)
	if err != nil || !found {
		t.Fatal(err)
	}
	next, err := h.Recover(t.Context(), p, func(Plan) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	if err := next.Dispose(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := v.cmd.Wait(); err == nil {
		t.Error("victim ends well")
	}
	v.ended = true
	if _, err := os.Stat(p.Group); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("group is left over: %v", err)
	}
	if err := m.leave(t.Context()); err != nil {
		t.Error(err)
	}
	// And a process that is gone leaves nothing to resume.
	gone, err := h.Recover(t.Context(), p, func(Plan) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	if resumed, err := gone.Resume(t.Context()); err != nil || !resumed.KilledAtSource {
		t.Errorf("%+v, %v", resumed, err)
	}
}

// What could not be undone is undone by the next try: the process runs, the group
// stays until then.
func TestResumedInTwoTries(t *testing.T) {
	h := newHost(t)
	v := startVictim(t, "churn")
	was := look(t, h, v.pid)
	m := start(t, h, v.pid, migrate.Options{})
	if err := m.Run(t.Context(), newReplica().connect(t), &recorder{}); err != nil {
		t.Fatal(err)
	}
	origin := m.processes[0].origin
	m.processes[0].origin = freezer.At(t.TempDir())
	first, err := m.Resume(t.Context())
	if err == nil || first.Downtime <= 0 || first.KilledAtSource {
		t.Fatalf("without a way back: %+v, %v", first, err)
	}
	if frozen, err := m.group.Frozen(); err != nil || frozen {
		t.Errorf("frozen: %v, %v", frozen, err)
	}
	m.processes[0].origin = origin
	if again, err := m.Resume(t.Context()); err != nil || again.Downtime != first.Downtime || again.KilledAtSource {
		t.Errorf("%+v, %v instead of %+v", again, err, first)
	}
	if _, err := os.Stat(m.group.Dir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("group is left over: %v", err)
	}
	was.untouched(t, h, v.pid)
	v.finish()
}

// So it is with the end of a frozen copy: what another try finds is dead already.
func TestDisposedInTwoTries(t *testing.T) {
	h := newHost(t)
	v := startVictim(t, "churn")
	m := start(t, h, v.pid, migrate.Options{})
	if err := m.Run(t.Context(), newReplica().connect(t), &recorder{}); err != nil {
		t.Fatal(err)
	}
	other := exec.Command("sleep", "1000")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = other.Process.Kill()
		_ = other.Wait()
	}()
	if err := m.group.Add(other.Process.Pid); err != nil {
		t.Fatal(err)
	}
	origin := m.plan.Processes[0].Origin
	m.plan.Processes[0].Origin = t.TempDir()
	if err := m.Dispose(t.Context()); err == nil {
		t.Fatal("a process that has no way out of the group is no problem")
	}
	m.plan.Processes[0].Origin = origin
	if err := m.Dispose(t.Context()); err != nil {
		t.Error(err)
	}
	if err := v.cmd.Wait(); err == nil {
		t.Error("victim ends well")
	}
	v.ended = true
	if _, err := os.Stat(m.group.Dir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("group is left over: %v", err)
	}
}

// A process that an agent has left frozen, and that the next one cannot stop at
// first, stays frozen until it can be mended.
func TestMendedLater(t *testing.T) {
	h := newHost(t)
	v := startVictim(t, "churn")
	was := look(t, h, v.pid)
	lost := start(t, h, v.pid, migrate.Options{})
	if err := lost.Run(t.Context(), newReplica().connect(t), &recorder{}); err != nil {
		t.Fatal(err)
	}
	for _, p := range lost.processes { // as its death would
		if err := errors.Join(p.release(), p.close()); err != nil {
			t.Fatal(err)
		}
	}
	m, err := h.Recover(t.Context(), lost.plan, func(Plan) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	debugger := parasite.NewTracer()
	traced, err := debugger.Seize(v.pid)
	if err == nil {
		err = traced.StopThread(t.Context(), v.pid)
	}
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := m.Resume(t.Context()); err == nil {
			t.Fatal("resumed under a debugger")
		}
		if frozen, err := m.group.Frozen(); err != nil || !frozen {
			t.Fatalf("frozen: %v, %v", frozen, err)
		}
	}
	if err := errors.Join(traced.Detach(), debugger.Close()); err != nil {
		t.Fatal(err)
	}
	if resumed, err := m.Resume(t.Context()); err != nil || resumed.KilledAtSource || resumed.Lost != "" {
		t.Errorf("%+v, %v", resumed, err)
	}
	was.untouched(t, h, v.pid)
	v.finish()
}
