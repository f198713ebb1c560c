package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/e2e/lab"
	"github.com/pagurus-project/pagurus/e2e/testbed"
	"github.com/pagurus-project/pagurus/migrate"
)

// Who is killed.
const (
	source      = "source agent"
	destination = "destination agent"
	leader      = "raft leader"
)

// A fault is a migration that somebody is killed in. It goes from host-a to
// host-b.
type fault struct {
	t       *testing.T
	ctx     context.Context
	process *testbed.Process
	flags   []string
	id      string
	stopped []*lab.Daemon // by SIGSTOP
	leader  string        // before the coordinators were stopped
}

// Instants at which to kill. A migration is brought to each by stopping those
// who would carry it on, not by waiting for the right moment.
var instants = []struct {
	name  string
	flags []string
	reach func(f *fault, victim string)
	// What a migration may become. The process runs where that says.
	outcomes []migrate.State
}{
	{
		"preflight", nil,
		func(*fault, string) {}, // asking for a migration returns before it has begun
		[]migrate.State{migrate.StateDone, migrate.StateAborted, migrate.StateRefused},
	},
	{
		"precopy",
		[]string{"--bandwidth", "50Mbit"},
		func(f *fault, _ string) { f.await("the first pages", f.copying) },
		// A new leader takes over what is under way.
		[]migrate.State{migrate.StateDone, migrate.StateAborted},
	},
	{
		"frozen",
		[]string{"--verify"},
		func(f *fault, _ string) { f.await("the process to be frozen", f.frozen) },
		[]migrate.State{migrate.StateDone, migrate.StateAborted},
	},
	{
		"prepared",
		[]string{"--bandwidth", "400Mbit"},
		func(f *fault, _ string) {
			f.await("the first pages", f.copying)
			f.stopCoordinators()
			f.await("promise and preparation", f.promised)
		},
		[]migrate.State{migrate.StateDone, migrate.StateAborted},
	},
	{
		"committed",
		nil,
		func(f *fault, victim string) { f.reachCommitted(victim) },
		[]migrate.State{migrate.StateDone},
	},
}

// TestKills kills each of those who take part in a migration with SIGKILL, at
// each instant. Afterwards exactly one copy runs, and nothing is left over.
func TestKills(t *testing.T) {
	for _, instant := range instants {
		for _, victim := range []string{source, destination, leader} {
			t.Run(instant.name+" "+victim, func(t *testing.T) {
				f := newFault(t, instant.flags)
				instant.reach(f, victim)
				f.kill(victim)
				f.resume(everybody)
				f.judge(instant.outcomes)
			})
		}
	}
}

// TestKillsAtRandom kills at instants that nobody chose.
func TestKillsAtRandom(t *testing.T) {
	const kills = 9
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for i := range kills {
		victim := []string{source, destination, leader}[i%3]
		after := time.Duration(random.Int64N(int64(400 * time.Millisecond)))
		t.Run(fmt.Sprintf("%s after %v", victim, after.Round(time.Millisecond)), func(t *testing.T) {
			f := newFault(t, nil)
			<-time.After(after)
			f.kill(victim)
			f.judge([]migrate.State{migrate.StateDone, migrate.StateAborted, migrate.StateRefused})
		})
	}
}

// newFault starts a program and a migration of it.
func newFault(t *testing.T, flags []string) *fault {
	t.Helper()
	ctx := limit(t, 90*time.Second)
	for _, h := range bed.Lab.Hosts() {
		agentAnswers(ctx, t, h.Name()) // after the case before this one
	}
	f := &fault{t: t, ctx: ctx, flags: flags}
	f.process = start(ctx, t, "host-a", "$BIN/workload", "memory", "-size", "64MiB", "-threads", "3", "-ask", "$ASK")
	t.Cleanup(func() { f.resume(everybody) })
	f.id = detached(ctx, t, f.process, "host-b", flags...)
	return f
}

// reachCommitted brings the migration to where the decision is known to the log
// and not yet to a side, which is stopped once it has reported. How long that
// takes after its journal has the promise nobody can tell, so this is tried
// again if it was too early or too late.
func (f *fault) reachCommitted(victim string) {
	const attempts = 20
	agent := f.agentOf(victim)
	for i := range attempts {
		begun := false
		f.await("promise and preparation", func() bool {
			begun = begun || f.phase("host-a", "source") != ""
			return f.promised() || begun && f.phase("host-a", "source") == "" // over already
		})
		<-time.After(time.Duration(i%5) * time.Millisecond)
		f.stop(agent)
		var r migrate.Report
		waiting, cancel := context.WithTimeout(f.ctx, time.Second)
		_ = testbed.Await(waiting, "the decision", func() (bool, error) {
			r = show(f.ctx, f.t, f.id)
			return r.State == migrate.StateCommitted || r.Settled, nil
		})
		cancel()
		if r.State == migrate.StateCommitted && !r.Settled {
			f.t.Logf("reached at attempt %d", i)
			return
		}
		f.resume(everybody)
		if r = settled(f.ctx, f.t, f.id); r.State == migrate.StateDone {
			f.process.Host = "host-b"
			moved(f.ctx, f.t, f.process, "host-a")
		}
		f.id = detached(f.ctx, f.t, f.process, "host-b", f.flags...)
	}
	f.t.Fatalf("not reached in %d attempts", attempts)
}

// judge waits for the end of the migration and looks at what has become of it.
func (f *fault) judge(outcomes []migrate.State) {
	f.t.Helper()
	r := settled(f.ctx, f.t, f.id)
	f.t.Logf("%s: %s", r.State, r.Reason)
	if !slices.Contains(outcomes, r.State) {
		f.t.Errorf("the migration is %s (%s), and should be one of %v%s", r.State, r.Reason, outcomes, bed.Logs("host-a", "host-b"))
	}
	if r.State == migrate.StateDone {
		f.process.Host = "host-b"
	}
	alone(f.t, f.process)
	content(f.ctx, f.t, f.process)
	if f.t.Failed() {
		f.t.Log(bed.Logs("host-a", "host-b"))
	}
}

func (f *fault) await(what string, done func() bool) {
	f.t.Helper()
	if err := testbed.Await(f.ctx, what, func() (bool, error) { return done(), nil }); err != nil {
		f.t.Fatalf("%v%s", err, bed.Logs("host-a", "host-b"))
	}
}

// agentOf is the agent that is stopped where a victim is to be killed with the
// decision known to it, or known to everybody but it.
func (f *fault) agentOf(victim string) *lab.Daemon {
	if victim == destination {
		return host(f.t, "host-b").Daemon("agent")
	}
	return host(f.t, "host-a").Daemon("agent")
}

// kill kills a daemon, which is started again a moment later.
func (f *fault) kill(victim string) {
	f.t.Helper()
	d := f.agentOf(victim)
	if victim == leader {
		name := f.leader
		if !slices.ContainsFunc(f.stopped, isCoordinator) {
			name = bed.Lab.Status(f.ctx).Leader
		}
		d = host(f.t, name).Daemon("coordinator")
	}
	if err := d.Kill(f.ctx); err != nil {
		f.t.Fatal(err)
	}
	f.stopped = slices.DeleteFunc(f.stopped, func(s *lab.Daemon) bool { return s.Log() == d.Log() })
}

func everybody(*lab.Daemon) bool       { return true }
func isCoordinator(d *lab.Daemon) bool { return filepath.Base(d.Log()) == "coordinator.log" }

// stop keeps a daemon from doing anything, which nobody is told.
func (f *fault) stop(d *lab.Daemon) {
	f.t.Helper()
	if err := d.Signal(f.ctx, unix.SIGSTOP); err != nil {
		f.t.Fatal(err)
	}
	f.stopped = append(f.stopped, d)
}

// resume lets stopped daemons go on.
func (f *fault) resume(which func(*lab.Daemon) bool) {
	f.t.Helper()
	var rest []*lab.Daemon
	for _, d := range f.stopped {
		if !which(d) {
			rest = append(rest, d)
		} else if err := d.Signal(context.WithoutCancel(f.ctx), unix.SIGCONT); err != nil {
			f.t.Error(err)
		}
	}
	f.stopped = rest
}

func (f *fault) stopCoordinators() {
	f.t.Helper()
	f.leader = bed.Lab.Status(f.ctx).Leader
	for _, h := range bed.Lab.Hosts() {
		f.stop(h.Daemon("coordinator"))
	}
}

// copying reports whether pages have begun to cross.
func (f *fault) copying() bool {
	r := show(f.ctx, f.t, f.id)
	if r.Settled {
		f.t.Fatalf("the migration is %s already: %s%s", r.State, r.Reason, bed.Logs("host-a", "host-b"))
	}
	return r.State == migrate.StatePrecopy && r.Progress != nil && r.Progress.Bytes > 0
}

// frozen reports whether the process's control group is frozen at the source.
func (f *fault) frozen() bool {
	found := false
	root := f.root("host-a")
	_ = filepath.WalkDir(filepath.Join(root, "sys/fs/cgroup"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.Contains(d.Name(), f.id) {
			events, _ := os.ReadFile(filepath.Join(path, "cgroup.events"))
			found = found || strings.Contains(string(events), "frozen 1")
		}
		return nil // what goes away meanwhile is not frozen
	})
	return found
}

// promised reports whether both sides wait for the decision, by their journals.
func (f *fault) promised() bool {
	return f.phase("host-a", "source") == "promised" && f.phase("host-b", "target") == "prepared"
}

func (f *fault) phase(name, side string) string {
	content, err := os.ReadFile(filepath.Join(f.root(name), "run/pagurus/migrations", f.id+"-"+side+".json"))
	if err != nil {
		return ""
	}
	var entry struct {
		Phase string `json:"phase"`
	}
	if err := json.Unmarshal(content, &entry); err != nil {
		f.t.Fatalf("%s's journal: %v: %s", name, err, content)
	}
	return entry.Phase
}

func (f *fault) root(name string) string {
	f.t.Helper()
	root, err := host(f.t, name).Root()
	if err != nil {
		f.t.Fatal(err)
	}
	return root
}
