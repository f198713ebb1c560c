package scheduler

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/pagurus-project/pagurus/migrate"
)

// Errors of requests.
var (
	ErrNoSuchMigration = errors.New("no such migration")
	ErrTooLate         = errors.New("too late")
	ErrKeyReused       = errors.New("the idempotency key belongs to another request")
)

// A Move is a request to move a process.
type Move struct {
	PID     int
	From    string
	To      string
	Options migrate.Options
	Key     string // requests with the same one are the same request
}

// Create writes down a migration and returns it; what follows is the worker's.
func (s *Scheduler) Create(ctx context.Context, m Move) (migrate.Report, error) {
	ctx, stop, err := s.whileLeading(ctx)
	if err != nil {
		return migrate.Report{}, err
	}
	defer stop()
	at := now()
	created := migrate.Created{
		ID: newID(at), Key: m.Key, PID: m.PID, From: m.From, To: m.To, Options: m.Options.WithDefaults(), At: at,
	}
	r, err := s.write(ctx, created.ID, created)
	if err != nil {
		return migrate.Report{}, fmt.Errorf("writing down the migration: %w", err)
	}
	if r.PID != m.PID || r.From != m.From || r.To != m.To || !r.Options.Equal(created.Options) {
		return migrate.Report{}, fmt.Errorf("%w, which is migration %s", ErrKeyReused, r.ID)
	}
	return s.overlay(r), nil
}

// Cancel aborts a migration unless there is a decision. Repeated, it succeeds
// again if the decision is its own.
func (s *Scheduler) Cancel(ctx context.Context, id, who string) (migrate.Report, error) {
	ctx, stop, err := s.whileLeading(ctx)
	if err != nil {
		return migrate.Report{}, err
	}
	defer stop()
	abort := migrate.Attempt{}.Abort("cancelled by " + who)
	if w, err := s.worker(id); err == nil && w != nil {
		abort.Measured = w.known().Measured
	}
	abort.At = now()
	r, err := s.propose(ctx, id, abort)
	if err != nil {
		return migrate.Report{}, err
	}
	if r.State != migrate.StateAborted || !strings.HasPrefix(r.Reason, abort.Reason) {
		return s.overlay(r), fmt.Errorf("%w: migration %s is %s", ErrTooLate, id, r.State)
	}
	return s.overlay(r), nil
}

// Fence takes somebody's word that the destination of a committed migration
// cannot run the process, so that the source may.
func (s *Scheduler) Fence(ctx context.Context, id, who string) (migrate.Report, error) {
	ctx, stop, err := s.whileLeading(ctx)
	if err != nil {
		return migrate.Report{}, err
	}
	defer stop()
	r, err := s.propose(ctx, id, migrate.Fenced{By: who, At: now()})
	if errors.Is(err, migrate.ErrOutOfPlace) {
		return s.overlay(r), fmt.Errorf("%w: migration %s is %s, and does not wait for its destination", ErrTooLate, id, r.State)
	}
	if err != nil {
		return migrate.Report{}, err
	}
	return s.overlay(r), nil
}

// propose writes an event of a migration that has to be there.
func (s *Scheduler) propose(ctx context.Context, id string, event migrate.Event) (migrate.Record, error) {
	if _, ok := s.log.Record(id); !ok {
		return migrate.Record{}, fmt.Errorf("%w: %s", ErrNoSuchMigration, id)
	}
	r, err := s.write(ctx, id, event)
	if err != nil {
		return r, fmt.Errorf("writing to the log: %w", err)
	}
	return r, nil
}

// whileLeading returns a context that ends with ctx or when this server stops
// to lead.
func (s *Scheduler) whileLeading(ctx context.Context) (context.Context, context.CancelFunc, error) {
	leading, err := s.Leading()
	if err != nil {
		return nil, nil, err
	}
	ctx, stop := Within(ctx, leading)
	return ctx, stop, nil
}

// Within returns a context that ends with either of two. stop has to be called.
func Within(ctx, other context.Context) (_ context.Context, stop context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	release := context.AfterFunc(other, cancel)
	return ctx, func() { release(); cancel() }
}
