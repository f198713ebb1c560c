package scheduler_test

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pagurus-project/pagurus/coordinator/clustertest/agenttest"
	"github.com/pagurus-project/pagurus/coordinator/scheduler"
	"github.com/pagurus-project/pagurus/migrate"
	migratev1 "github.com/pagurus-project/pagurus/proto/migrate/v1"
)

// memoryLog is the replicated log of a cluster that never loses a majority.
type memoryLog struct {
	mu      sync.Mutex
	ledger  *migrate.Ledger
	entries []migrate.Event
	changed func(migrate.Record, []migrate.Effect)
	// fault may make a write fail, before or after it was written.
	fault func(migrate.Event) (before, after error)
}

var errLog = errors.New("leadership was lost while writing")

func (l *memoryLog) Apply(ctx context.Context, id string, e migrate.Event) (migrate.Record, error) {
	if err := ctx.Err(); err != nil {
		return migrate.Record{}, err
	}
	l.mu.Lock()
	var before, after error
	if l.fault != nil {
		before, after = l.fault(e)
	}
	if before != nil {
		l.mu.Unlock()
		return migrate.Record{}, before
	}
	l.entries = append(l.entries, e)
	r, effects, err := l.ledger.Apply(id, e)
	l.mu.Unlock()
	if err != nil {
		return r, err
	}
	l.changed(r, effects)
	return r, after
}

func (l *memoryLog) Barrier(context.Context) error { return nil }

func (l *memoryLog) Record(id string) (migrate.Record, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ledger.Record(id)
}

func (l *memoryLog) Records() []migrate.Record {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ledger.Records()
}

func (l *memoryLog) Holder(host string, pid int) (migrate.Record, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ledger.Holder(host, pid)
}

func (l *memoryLog) Addresses() ([]migrate.Address, uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ledger.Addresses(), uint64(len(l.entries))
}

// fixture is a scheduler with two hosts and a process 7 on host-a.
type fixture struct {
	t     *testing.T
	log   *memoryLog
	s     *scheduler.Scheduler
	world *agenttest.World
	a, b  *agenttest.Agent

	mu    sync.Mutex
	lost  func() // end of the present term
	ended chan struct{}
	terms uint64
}

// run runs f in a bubble with a fixture that leads. All waiting is for nothing
// but other goroutines and takes no time, time-outs included.
func run(t *testing.T, f func(t *testing.T, x *fixture)) {
	synctest.Test(t, func(t *testing.T) {
		x := &fixture{
			t: t, log: &memoryLog{ledger: migrate.NewLedger(100)},
			world: agenttest.NewWorld(t, 250*time.Millisecond),
		}
		x.s = scheduler.New(x.log, x, scheduler.DefaultTiming(), slog.New(slog.DiscardHandler))
		x.log.changed = x.s.Changed
		x.a = x.world.AddAgent("host-a", x.s)
		x.b = x.world.AddAgent("host-b", x.s)
		x.world.AddProcess("host-a", 7)
		x.lead()
		t.Cleanup(func() {
			x.loseLeadership()
			for _, agent := range []*agenttest.Agent{x.a, x.b} {
				agent.Kill()
				agent.Wait()
			}
		})
		f(t, x)
	})
}

// lead begins a term and returns when it has begun.
func (x *fixture) lead() {
	x.mu.Lock()
	x.terms += 3
	ctx, cancel := context.WithCancel(context.Background())
	ended, term := make(chan struct{}), x.terms
	x.lost, x.ended = cancel, ended
	x.mu.Unlock()
	go func() {
		defer close(ended)
		x.s.Lead(ctx, term)
	}()
	synctest.Wait()
}

func (x *fixture) loseLeadership() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.lost()
	<-x.ended
}

// Agent makes x the way to agents, without a network.
func (x *fixture) Agent(host string) (migratev1.AgentClient, error) {
	switch host {
	case "host-a":
		return direct{agent: x.a}, nil
	case "host-b":
		return direct{agent: x.b}, nil
	}
	return nil, scheduler.ErrNoSuchHost
}

func (x *fixture) create(options migrate.Options) string {
	x.t.Helper()
	r, err := x.s.Create(x.t.Context(), scheduler.Move{PID: 7, From: "host-a", To: "host-b", Options: options})
	if err != nil {
		x.t.Fatal(err)
	}
	return r.ID
}

// await returns the record once a condition holds for it.
func (x *fixture) await(id string, holds func(migrate.Report) bool) migrate.Record {
	x.t.Helper()
	wake, stop := x.s.Watch(id)
	defer stop()
	timeout := time.After(time.Hour)
	for {
		if report, ok := x.s.Migration(id); ok && holds(report) {
			r, _ := x.log.Record(id)
			return r
		}
		select {
		case <-wake:
		case <-timeout:
			r, _ := x.log.Record(id)
			x.t.Fatalf("still in %+v", r)
		}
	}
}

// settle waits until nothing is left of the migration on any host, and checks
// what the record says of it.
func (x *fixture) settle(id string, want migrate.State) migrate.Record {
	x.t.Helper()
	r := x.await(id, func(migrate.Report) bool {
		r, _ := x.log.Record(id)
		return r.Settled() && len(r.Effects()) == 0
	})
	if r.State != want {
		x.t.Errorf("settled in %s (%s) instead of %s", r.State, r.Reason, want)
	}
	x.world.MustRemember(0)
	if want == migrate.StateDone {
		x.world.MustRunOnlyOn("host-b", 7)
	} else {
		x.world.MustRunOnlyOn("host-a", 7)
	}
	return r
}

// direct calls an agent without gRPC between.
type direct struct {
	agent *agenttest.Agent

	migratev1.AgentClient // nil: the rest of it a scheduler does not call
}

var _ migratev1.AgentClient = direct{}

// call gives an order as the network does: it comes to nothing if the agent is
// dead before, and its answer is lost if the caller no longer waits.
func call[Req, Resp any](ctx context.Context, a *agenttest.Agent, f func(context.Context, Req) (Resp, error), req Req) (Resp, error) {
	var none Resp
	if a.Alive().Err() != nil {
		return none, status.Error(codes.Unavailable, "connection refused")
	}
	type answer struct {
		resp Resp
		err  error
	}
	answered := make(chan answer, 1)
	go func() {
		resp, err := f(ctx, req)
		answered <- answer{resp, err}
	}()
	select {
	case got := <-answered:
		return got.resp, got.err
	case <-ctx.Done():
		return none, status.FromContextError(ctx.Err()).Err()
	}
}

func (d direct) Describe(ctx context.Context, req *migratev1.DescribeRequest, _ ...grpc.CallOption) (*migratev1.DescribeResponse, error) {
	return call(ctx, d.agent, d.agent.Describe, req)
}

func (d direct) ListProcesses(ctx context.Context, req *migratev1.ListProcessesRequest, _ ...grpc.CallOption) (*migratev1.ListProcessesResponse, error) {
	return call(ctx, d.agent, d.agent.ListProcesses, req)
}

func (d direct) Inspect(ctx context.Context, req *migratev1.InspectRequest, _ ...grpc.CallOption) (*migratev1.InspectResponse, error) {
	return call(ctx, d.agent, d.agent.Inspect, req)
}

func (d direct) Reserve(ctx context.Context, req *migratev1.ReserveRequest, _ ...grpc.CallOption) (*migratev1.ReserveResponse, error) {
	return call(ctx, d.agent, d.agent.Reserve, req)
}

func (d direct) Start(ctx context.Context, req *migratev1.StartRequest, _ ...grpc.CallOption) (*migratev1.StartResponse, error) {
	return call(ctx, d.agent, d.agent.Start, req)
}

func (d direct) Decide(ctx context.Context, req *migratev1.DecideRequest, _ ...grpc.CallOption) (*migratev1.DecideResponse, error) {
	return call(ctx, d.agent, d.agent.Decide, req)
}

func (d direct) Dispose(ctx context.Context, req *migratev1.DisposeRequest, _ ...grpc.CallOption) (*migratev1.DisposeResponse, error) {
	return call(ctx, d.agent, d.agent.Dispose, req)
}

func (d direct) Forget(ctx context.Context, req *migratev1.ForgetRequest, _ ...grpc.CallOption) (*migratev1.ForgetResponse, error) {
	return call(ctx, d.agent, d.agent.Forget, req)
}
