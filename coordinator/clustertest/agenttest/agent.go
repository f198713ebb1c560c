package agenttest

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pagurus-project/pagurus/migrate"
	migratev1 "github.com/pagurus-project/pagurus/proto/migrate/v1"
)

// A Coordinator is where an agent reports to.
type Coordinator interface {
	Report(ctx context.Context, req *migratev1.ReportRequest) (*migratev1.ReportResponse, error)
}

// An Agent is the agent of one host. Its methods that are orders serve gRPC.
type Agent struct {
	migratev1.UnimplementedAgentServer
	Host string
	// To be set before orders come.
	InspectBlockers []migrate.Code
	ReserveBlockers []migrate.Code
	ReserveFails    bool
	NeverRuns       bool   // resuming fails at the last step
	KilledFrozen    bool   // the frozen copy is killed by somebody
	Lost            string // what a process that was frozen runs on without

	world       *World
	coordinator Coordinator

	mu      sync.Mutex
	halves  map[string]*half
	barred  map[string]uint64 // by an ABORT that came before what it aborts, up to an epoch
	alive   context.Context   // ends with Kill
	kill    context.CancelFunc
	running sync.WaitGroup
}

var _ migratev1.AgentServer = (*Agent)(nil)

// A half is one side's part of a migration.
type half struct {
	id     string
	epoch  uint64
	pid    int
	source bool
	peer   string // of a source
	token  string
	opts   *migratev1.Options
	state  string // source: running, frozen, promised; target: shell, prepared
	// Set when it is over.
	outcome migratev1.Outcome
	over    chan struct{} // closed then: nothing is reported any more
}

// AddAgent makes the agent of a host.
func (w *World) AddAgent(host string, c Coordinator) *Agent {
	a := &Agent{Host: host, world: w, coordinator: c, halves: map[string]*half{}, barred: map[string]uint64{}}
	a.alive, a.kill = context.WithCancel(context.Background())
	w.mu.Lock()
	defer w.mu.Unlock()
	w.agents[host] = a
	return a
}

// Kill ends the agent; what it has on its host stays. Calls to it have to be
// refused by whoever serves them.
func (a *Agent) Kill() { a.kill() }

// Wait returns when a killed agent does nothing any more.
func (a *Agent) Wait() { a.running.Wait() }

// Alive ends with Kill.
func (a *Agent) Alive() context.Context {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.alive
}

// Restart takes up what the killed agent had on its host: a source that has
// not promised resumes, a shell that was not prepared is removed, and what
// only the log can decide is reported until it does.
func (a *Agent) Restart() {
	a.running.Wait()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.alive, a.kill = context.WithCancel(context.Background())
	for _, h := range a.halves {
		switch {
		case h.outcome != 0:
		case h.state == "promised":
			a.goLocked(func(ctx context.Context) { a.repeat(ctx, h, promised()) })
		case h.state == "prepared":
			a.goLocked(func(ctx context.Context) { a.repeat(ctx, h, prepared()) })
		case h.source:
			a.goLocked(func(ctx context.Context) { a.end(ctx, h, "the agent was lost", false) })
		default:
			a.goLocked(func(ctx context.Context) {
				a.settle(h, migratev1.Outcome_OUTCOME_RELEASED)
				a.repeat(ctx, h, ended("the agent was lost", false))
			})
		}
	}
}

func (a *Agent) goLocked(f func(context.Context)) {
	ctx := a.alive
	a.running.Go(func() { f(ctx) })
}

func (a *Agent) remembers() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.halves)
}

// dead is what a killed agent answers to an order that was under way.
func (a *Agent) dead() error {
	if a.Alive().Err() != nil {
		return status.Error(codes.Unavailable, "the agent was killed")
	}
	return nil
}

// step lets the test interfere, and notices if that was the end.
func (a *Agent) step(s Step) error {
	a.world.step(a.Host, s)
	return a.dead()
}

// half finds what an order is about and refuses older epochs.
func (a *Agent) half(ref *migratev1.Ref) (*half, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	h := a.halves[ref.GetMigration()]
	if h != nil && ref.GetEpoch() < h.epoch {
		return nil, status.Errorf(codes.FailedPrecondition, "epoch %d is older than %d", ref.GetEpoch(), h.epoch)
	}
	return h, nil
}

// addLocked takes up a half, unless that was forbidden before the order to do so came.
func (a *Agent) addLocked(h *half) error {
	if a.alive.Err() != nil || h.epoch <= a.barred[h.id] {
		return status.Errorf(codes.FailedPrecondition, "migration %s was aborted", h.id)
	}
	h.over = make(chan struct{})
	a.halves[h.id] = h
	return nil
}

// bar forbids what may still be on its way here.
func (a *Agent) bar(ref *migratev1.Ref) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.barred[ref.GetMigration()] = max(a.barred[ref.GetMigration()], ref.GetEpoch())
}

// settle carries out an outcome, once.
func (a *Agent) settle(h *half, o migratev1.Outcome) migratev1.Outcome {
	a.mu.Lock()
	defer a.mu.Unlock()
	if h.outcome != 0 {
		return h.outcome
	}
	if exists, _ := a.world.has(h.pid, a.Host); h.source && !exists {
		o = migratev1.Outcome_OUTCOME_KILLED_AT_SOURCE
	}
	switch o {
	case migratev1.Outcome_OUTCOME_RESUMED, migratev1.Outcome_OUTCOME_RUNNING:
		a.world.set(h.pid, a.Host, true)
	case migratev1.Outcome_OUTCOME_RELEASED, migratev1.Outcome_OUTCOME_NEVER_RAN:
		a.world.remove(h.pid, a.Host)
	}
	h.outcome = o
	close(h.over)
	return o
}

// advance takes a source one state further, unless it is over.
func (a *Agent) advance(h *half, state string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if h.outcome != 0 || a.alive.Err() != nil {
		return false
	}
	if state == "frozen" {
		a.world.set(h.pid, a.Host, false)
	}
	h.state = state
	return true
}

// repeat reports until an answer carries a decision, and takes that decision.
func (a *Agent) repeat(ctx context.Context, h *half, event *migratev1.ReportRequest) {
	for {
		resp, err := a.report(ctx, h, event)
		if err == nil && resp.GetDecision() != 0 {
			a.decided(h, resp.GetDecision())
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-h.over:
			if event.GetEnded() == nil {
				return
			}
			// The end was our own: it is news until the log has it.
			if !wait(ctx, a.world.repeat) {
				return
			}
		case <-time.After(a.world.repeat):
		}
	}
}

func wait(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

func (a *Agent) report(ctx context.Context, h *half, event *migratev1.ReportRequest) (*migratev1.ReportResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return a.coordinator.Report(ctx, &migratev1.ReportRequest{
		Ref: &migratev1.Ref{Migration: h.id, Epoch: h.epoch}, Host: a.Host, Event: event.GetEvent(),
	})
}

// decided takes the log's word. To a source COMMIT says nothing more than to
// stay as it is.
func (a *Agent) decided(h *half, d migratev1.Decision) migratev1.Outcome {
	switch {
	case d == migratev1.Decision_DECISION_ABORT && h.source:
		return a.settle(h, migratev1.Outcome_OUTCOME_RESUMED)
	case d == migratev1.Decision_DECISION_ABORT:
		return a.settle(h, migratev1.Outcome_OUTCOME_RELEASED)
	case h.source:
		return 0
	case a.NeverRuns:
		return a.settle(h, migratev1.Outcome_OUTCOME_NEVER_RAN)
	}
	return a.settle(h, migratev1.Outcome_OUTCOME_RUNNING)
}

// end is a source's way to give up before it has promised.
func (a *Agent) end(ctx context.Context, h *half, reason string, rehearsed bool) {
	if a.step(Resume) != nil {
		return
	}
	o := a.settle(h, migratev1.Outcome_OUTCOME_RESUMED)
	event := ended(reason, rehearsed)
	event.GetEnded().Lost = a.Lost
	event.GetEnded().Outcome = o
	a.repeat(ctx, h, event)
}

func ended(reason string, rehearsed bool) *migratev1.ReportRequest {
	return &migratev1.ReportRequest{Event: &migratev1.ReportRequest_Ended{Ended: &migratev1.Ended{
		Reason: reason, Rehearsed: rehearsed, Measured: &migratev1.Promised{DowntimeMs: 9},
	}}}
}

func prepared() *migratev1.ReportRequest {
	return &migratev1.ReportRequest{Event: &migratev1.ReportRequest_Prepared{Prepared: &migratev1.Prepared{}}}
}

// promised carries figures that a test can recognise in the end.
func promised() *migratev1.ReportRequest {
	return &migratev1.ReportRequest{Event: &migratev1.ReportRequest_Promised{Promised: &migratev1.Promised{
		Rounds:   []*migratev1.Round{{N: 0, Pages: 100, Bytes: 409600, WireBytes: 1000, Ms: 5}, {N: 1, Pages: 1, Bytes: 4096, WireBytes: 10, Ms: 1, Frozen: true}},
		PhasesMs: map[string]float64{migrate.PhasePrecopy: 6, migrate.PhaseStop: 1, migrate.PhaseTransfer: 0.5},
		// Source and destination add up to 4.
		DowntimeMs: 1.5, Bytes: 413696, WireBytes: 1010,
	}}}
}
