package agenttest

import (
	"maps"
	"slices"
	"sync"
	"testing"
	"time"
)

// A Step is a point in an agent's work, named for what comes next.
type Step string

// The steps of a source.
const (
	Inspect  Step = "inspect"
	Start    Step = "start"
	Progress Step = "progress"
	Freeze   Step = "freeze"
	Promise  Step = "promise"  // the promise is to be noted
	Promised Step = "promised" // it has been, and is to be reported
	Resume   Step = "resume"
	Dispose  Step = "dispose"
)

// The steps of a destination.
const (
	Reserve Step = "reserve"
	Prepare Step = "prepare"
	Run     Step = "run"
	Running Step = "running" // it runs, and this is to be answered
	Release Step = "release"
)

// Forget is a step of both.
const Forget Step = "forget"

// A World is all hosts of a test.
type World struct {
	t      testing.TB
	repeat time.Duration

	mu     sync.Mutex
	agents map[string]*Agent
	// Where each process lives, and whether its threads run there.
	runs   map[int]map[string]bool
	onStep func(host string, step Step)
}

// NewWorld makes one whose agents repeat their reports that often.
func NewWorld(t testing.TB, repeat time.Duration) *World {
	return &World{t: t, repeat: repeat, agents: map[string]*Agent{}, runs: map[int]map[string]bool{}}
}

// OnStep has f called at each step, in the agent's own goroutine.
func (w *World) OnStep(f func(host string, step Step)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.onStep = f
}

func (w *World) step(host string, step Step) {
	w.mu.Lock()
	f := w.onStep
	w.mu.Unlock()
	if f != nil {
		f(host, step)
	}
}

// AddProcess starts a process on a host.
func (w *World) AddProcess(host string, pid int) {
	w.set(pid, host, true)
}

func (w *World) process(pid int) map[string]bool {
	if w.runs[pid] == nil {
		w.runs[pid] = map[string]bool{}
	}
	return w.runs[pid]
}

// set says that a host has a process, running or frozen, and checks that it
// never runs twice.
func (w *World) set(pid int, host string, running bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	hosts := w.process(pid)
	hosts[host] = running
	n := 0
	for _, r := range hosts {
		if r {
			n++
		}
	}
	if n > 1 {
		w.t.Errorf("process %d runs on several hosts: %v", pid, hosts)
	}
}

// remove takes a process off a host.
func (w *World) remove(pid int, host string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.process(pid), host)
}

func (w *World) has(pid int, host string) (exists, running bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	running, exists = w.process(pid)[host]
	return exists, running
}

// MustRunOnlyOn fails the test unless the process runs there and nowhere else
// is anything left of it.
func (w *World) MustRunOnlyOn(host string, pid int) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if hosts := w.process(pid); len(hosts) != 1 || !hosts[host] {
		w.t.Errorf("process %d is at %v, not only on %s", pid, hosts, host)
	}
}

// MustBeFrozen fails the test unless the host has the process and does not run it.
func (w *World) MustBeFrozen(host string, pid int) {
	w.t.Helper()
	if exists, running := w.has(pid, host); !exists || running {
		w.t.Errorf("process %d on %s: exists %t, running %t", pid, host, exists, running)
	}
}

// MustRemember fails the test unless agents remember so many halves of
// migrations.
func (w *World) MustRemember(n int) {
	w.t.Helper()
	if got := w.Remembered(); got != n {
		w.t.Errorf("agents remember %d halves of migrations, not %d", got, n)
	}
}

// Remembered is how many halves of migrations all agents remember.
func (w *World) Remembered() int {
	w.mu.Lock()
	agents := slices.Collect(maps.Values(w.agents))
	w.mu.Unlock()
	got := 0
	for _, a := range agents {
		got += a.remembers()
	}
	return got
}

func (w *World) agent(host string) *Agent {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.agents[host]
}
