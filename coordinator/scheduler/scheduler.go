package scheduler

import (
	"context"
	"errors"
	"log/slog"
	"sync"

	"github.com/pagurus-project/pagurus/coordinator/logline"
	"github.com/pagurus-project/pagurus/migrate"
	migratev1 "github.com/pagurus-project/pagurus/proto/migrate/v1"
)

// Log is the replicated log as the scheduler needs it.
type Log interface {
	// Apply writes an event and returns the record after it. An error other
	// than migrate.ErrOutOfPlace leaves open whether it was written.
	Apply(ctx context.Context, id string, event migrate.Event) (migrate.Record, error)
	// Barrier returns when what is read here is no older than the call.
	Barrier(ctx context.Context) error
	Record(id string) (migrate.Record, bool)
	Records() []migrate.Record
	Holder(host string, pid int) (migrate.Record, bool)
	// Addresses are the service addresses, and the last entry of the log that
	// they take account of.
	Addresses() (all []migrate.Address, index uint64)
}

// Agents finds the agent of a host. The error of an unknown host is ErrNoSuchHost.
type Agents interface {
	Agent(host string) (migratev1.AgentClient, error)
}

// ErrNoSuchHost says that no agent of that name has ever joined.
var ErrNoSuchHost = errors.New("no agent of that name has joined")

// ErrNotLeading says that another server has to be asked.
var ErrNotLeading = errors.New("this coordinator does not lead")

// A Scheduler carries migrations out while its server leads.
type Scheduler struct {
	log    Log
	agents Agents
	timing Timing
	logger *slog.Logger

	mu       sync.Mutex
	term     *term         // nil while another server leads
	turned   chan struct{} // closed when term is set, and replaced
	watchers map[string]map[*watcher]struct{}
}

// A term is one time of leading.
type term struct {
	ctx     context.Context // ends with it
	number  uint64          // the epoch of attempts that begin in it
	workers map[string]*worker
	running sync.WaitGroup
}

// New makes a scheduler, which does nothing until Lead.
func New(log Log, agents Agents, timing Timing, logger *slog.Logger) *Scheduler {
	return &Scheduler{
		log: log, agents: agents, timing: timing, logger: logger,
		turned: make(chan struct{}), watchers: map[string]map[*watcher]struct{}{},
	}
}

// Lead works on all migrations that have something outstanding until ctx ends.
// The log has to be up to date when it is called, and number higher than in
// any call before, on whatever server.
func (s *Scheduler) Lead(ctx context.Context, number uint64) {
	s.logger.Info("leading", logline.KeyEpoch, number)
	t := &term{ctx: ctx, number: number, workers: map[string]*worker{}}
	s.mu.Lock()
	s.term = t
	close(s.turned)
	s.turned = make(chan struct{})
	s.mu.Unlock()
	for _, r := range s.log.Records() {
		s.Changed(r, r.Effects())
	}
	<-ctx.Done()
	s.mu.Lock()
	s.term = nil
	s.wakeAllLocked()
	s.mu.Unlock()
	t.running.Wait()
	s.logger.Info("no longer leading", logline.KeyEpoch, number)
}

// Leading returns a context that ends when this server stops to lead.
func (s *Scheduler) Leading() (context.Context, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.term == nil || s.term.ctx.Err() != nil {
		return nil, ErrNotLeading
	}
	return s.term.ctx, nil
}

// Turn returns a channel that is closed when this server next begins to lead.
func (s *Scheduler) Turn() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.turned
}

// Changed tells of a record that is new or has changed, in the log's order.
func (s *Scheduler) Changed(r migrate.Record, outstanding []migrate.Effect) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wakeLocked(r.ID)
	t := s.term
	if t == nil {
		return
	}
	w := t.workers[r.ID]
	if w == nil {
		// What has nothing outstanding never will again.
		if len(outstanding) == 0 {
			return
		}
		w = newWorker(s, t, r.ID)
		t.workers[r.ID] = w
		t.running.Go(func() {
			w.run(t.ctx)
			s.mu.Lock()
			delete(t.workers, r.ID)
			s.mu.Unlock()
		})
	}
	w.changed(r)
}

// worker returns the worker of a migration that has something outstanding.
func (s *Scheduler) worker(id string) (*worker, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.term == nil {
		return nil, ErrNotLeading
	}
	return s.term.workers[id], nil
}

// write brings an event into the log and returns the record after it. While
// the result is unknown it writes again, which is safe since a repeated event
// changes nothing, and what the log holds then is the answer. It gives up when
// ctx ends, which it does for a worker when leadership is lost.
func (s *Scheduler) write(ctx context.Context, id string, event migrate.Event) (migrate.Record, error) {
	for n := 0; ; n++ {
		r, err := s.log.Apply(ctx, id, event)
		if err == nil || errors.Is(err, migrate.ErrOutOfPlace) {
			return r, err
		}
		if !sleep(ctx, s.timing.pause(n)) {
			return r, err
		}
	}
}
