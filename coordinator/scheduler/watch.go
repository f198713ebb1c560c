package scheduler

import (
	"context"
	"time"

	"github.com/pagurus-project/pagurus/migrate"
)

// A watcher is woken when there is something new about a migration, once for
// however much came in the meantime.
type watcher struct{ wake chan struct{} }

// Watch returns a channel that receives after each change of a migration, of
// its record, its progress or who leads. stop ends it.
func (s *Scheduler) Watch(id string) (wake <-chan struct{}, stop func()) {
	w := &watcher{wake: make(chan struct{}, 1)}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.watchers[id] == nil {
		s.watchers[id] = map[*watcher]struct{}{}
	}
	s.watchers[id][w] = struct{}{}
	return w.wake, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.watchers[id], w)
		if len(s.watchers[id]) == 0 {
			delete(s.watchers, id)
		}
	}
}

func (s *Scheduler) wakeLocked(id string) {
	for w := range s.watchers[id] {
		notify(w.wake)
	}
}

func (s *Scheduler) wakeAllLocked() {
	for id := range s.watchers {
		s.wakeLocked(id)
	}
}

func (s *Scheduler) wake(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wakeLocked(id)
}

// Migration is the report on one migration, with what only the leader knows.
func (s *Scheduler) Migration(id string) (migrate.Report, bool) {
	r, ok := s.log.Record(id)
	if !ok {
		return migrate.Report{}, false
	}
	return s.overlay(r), true
}

// Migrations are the reports on all of them, oldest first.
func (s *Scheduler) Migrations() []migrate.Report {
	records := s.log.Records()
	reports := make([]migrate.Report, len(records))
	for i, r := range records {
		reports[i] = s.overlay(r)
	}
	return reports
}

func (s *Scheduler) overlay(r migrate.Record) migrate.Report {
	report := r.Report()
	if w, err := s.worker(r.ID); err == nil && w != nil {
		return w.known().Overlay(report)
	}
	return report
}

// notify sends without waiting: the receiver looks for itself what is new.
func notify(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// sleep waits, and reports whether ctx has not ended meanwhile.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
