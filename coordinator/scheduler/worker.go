package scheduler

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/pagurus-project/pagurus/coordinator/logline"
	"github.com/pagurus-project/pagurus/migrate"
	migratev1 "github.com/pagurus-project/pagurus/proto/migrate/v1"
)

// A worker does what is outstanding about one migration, one step after the
// other, as long as this server leads.
type worker struct {
	s      *Scheduler
	id     string
	epoch  uint64 // of an attempt that begins in this term
	logger *slog.Logger

	// told wakes the step that waits for reports.
	told chan struct{}

	mu      sync.Mutex
	attempt migrate.Attempt
	heard   time.Time          // of the source, last
	state   migrate.State      // that the present step is for
	cancel  context.CancelFunc // of the present step

	// What Reserve answered to this worker, nil for an attempt that an earlier
	// leader began. Used in run's goroutine alone.
	reservation *reservation
}

// A reservation is what the source needs to know to begin.
type reservation struct {
	pageAddress string
	token       []byte
}

func newWorker(s *Scheduler, t *term, id string) *worker {
	return &worker{
		s: s, id: id, epoch: t.number, logger: s.logger.With(logline.KeyMigration, id),
		told: make(chan struct{}, 1), cancel: func() {},
	}
}

// run goes on until nothing is outstanding or ctx ends.
func (w *worker) run(ctx context.Context) {
	for n := 0; ctx.Err() == nil; n++ {
		record, step, done := w.begin(ctx)
		effects := record.Effects()
		if len(effects) == 0 {
			done()
			return
		}
		err := w.step(step, record, effects)
		interrupted := step.Err() != nil
		done()
		switch {
		case err == nil:
			n = -1
		case !interrupted:
			w.logger.Error("step failed", logline.KeyState, record.State, logline.KeyError, err)
			sleep(ctx, w.s.timing.pause(n))
		}
	}
}

// begin reads the record and returns a context for one step, which ends when
// the record's state is no longer the one that was read.
func (w *worker) begin(ctx context.Context) (migrate.Record, context.Context, context.CancelFunc) {
	w.mu.Lock()
	defer w.mu.Unlock()
	record, _ := w.s.log.Record(w.id)
	ctx, w.cancel = context.WithCancel(ctx)
	w.state = record.State
	return record, ctx, w.cancel
}

// changed hears from the log. A preflight that was cancelled is let finish: an
// order to reserve that is under way could otherwise be overtaken by the order
// to release what it makes.
func (w *worker) changed(r migrate.Record) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if r.State != w.state && w.state != migrate.StatePending {
		w.cancel()
	}
}

// step does what is outstanding in the record's state.
func (w *worker) step(ctx context.Context, r migrate.Record, effects []migrate.Effect) error {
	switch effects[0].Kind {
	case migrate.EffectPreflight:
		return w.preflight(ctx, r)
	case migrate.EffectStart:
		return w.lead(ctx, r)
	case migrate.EffectDispose:
		return w.dispose(ctx, r)
	case migrate.EffectForget:
		return w.forget(ctx, r, effects)
	}
	if r.Decision() == migrate.DecisionCommit {
		return w.commit(ctx, r)
	}
	return w.abort(ctx, r, effects)
}

// write brings an event of this migration into the log.
func (w *worker) write(ctx context.Context, event migrate.Event) error {
	_, err := w.s.write(ctx, w.id, event)
	return err
}

// known is what reports have told so far.
func (w *worker) known() migrate.Attempt {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.attempt
}

// update notes something that only the leader knows, and tells watchers.
func (w *worker) update(f func(*migrate.Attempt)) {
	w.mu.Lock()
	f(&w.attempt)
	w.mu.Unlock()
	w.s.wake(w.id)
}

// waiting notes for people what the migration waits for, empty for nothing.
func (w *worker) waiting(what string) {
	if w.known().Waiting == what {
		return
	}
	if what != "" {
		w.logger.Warn("waiting", logline.KeyReason, what)
	}
	w.update(func(a *migrate.Attempt) { a.Waiting = what })
}

// ref names the attempt that an order is about. A record that has none yet was
// looked at in some term, this one or an earlier one; this one's number covers
// both.
func (w *worker) ref(r migrate.Record) *migratev1.Ref {
	epoch := r.Epoch
	if epoch == 0 {
		epoch = w.epoch
	}
	return &migratev1.Ref{Migration: r.ID, Epoch: epoch}
}

// each calls f for the side of each effect, all at once.
func each(effects []migrate.Effect, f func(migrate.Side) error) error {
	errs := make([]error, len(effects))
	var wg sync.WaitGroup
	for i, e := range effects {
		wg.Go(func() { errs[i] = f(e.Side) })
	}
	wg.Wait()
	return errors.Join(errs...)
}
