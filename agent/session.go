package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pagurus-project/pagurus/migrate"
	migratev1 "github.com/pagurus-project/pagurus/proto/migrate/v1"
)

// A session is one side's part in one attempt. What belongs to one side alone
// stands in outgoing and incoming.
type session struct {
	agent  *Agent
	logger *slog.Logger
	// recovered says that an earlier agent began it: what the log says by now
	// is asked before anything is reported.
	recovered bool

	aborted   chan struct{} // closed once the log says ABORT, or an order that overrules it
	committed chan struct{} // closed once the log says COMMIT
	disposal  chan struct{} // closed once the source's copy may go
	over      chan struct{} // closed once it is over
	dropped   chan struct{} // closed when it is forgotten

	complained struct { // last, of reports that failed
		code codes.Code
		at   time.Time
	}

	mu       sync.Mutex
	entry    entry // as the journal has it
	decision migrate.Decision
	reason   string // of the decision
	index    uint64 // of the log's last entry that whoever told it took account of
	trouble  error  // what is in the way of carrying it out, at present
	news     news

	// Of a destination.
	token       []byte
	reserved    chan struct{} // closed once the next three are set
	blockers    []migrate.Finding
	warnings    []migrate.Finding
	failed      error
	connected   bool // the one page connection has come
	connections chan pageConn
}

// news is what there is to report.
type news struct {
	progress  *migratev1.ReportRequest_Progress // droppable: the latest counts
	standing  *migratev1.ReportRequest          // to be repeated until there is a decision
	after     time.Time                         // when standing is to be told first
	interrupt context.CancelFunc                // of the report under way
	wake      chan struct{}
}

// newSession makes a session of an entry, which is not in the journal yet.
func (a *Agent) newSession(e entry) *session {
	return &session{
		agent: a,
		logger: a.logger.With(keyMigration, e.Migration, keyEpoch, e.Epoch, keySide, string(e.Side),
			keyPID, first(e.PIDs)),
		aborted: make(chan struct{}), committed: make(chan struct{}), disposal: make(chan struct{}),
		over: make(chan struct{}), dropped: make(chan struct{}), reserved: make(chan struct{}),
		connections: make(chan pageConn, 1),
		entry:       e,
		news:        news{interrupt: func() {}, wake: make(chan struct{}, 1)},
	}
}

func first(pids []int) int {
	if len(pids) == 0 {
		return 0
	}
	return pids[0]
}

// is returns a copy of the entry.
func (s *session) is() entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.entry
}

// heardUpTo is how much of the log is known to have been taken account of.
func (s *session) heardUpTo() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.index
}

// note changes the entry and keeps it. If it cannot be kept, it is as before.
func (s *session) note(change func(*entry)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.noteLocked(change)
}

func (s *session) noteLocked(change func(*entry)) error {
	next := s.entry
	change(&next)
	select {
	case <-s.dropped: // nothing of it may come back into the journal
		s.entry = next
		return nil
	default:
	}
	if err := s.agent.journal.write(&next); err != nil {
		return err
	}
	s.entry = next
	return nil
}

// save keeps the engine's plan.
func (s *session) save(plan json.RawMessage) error {
	return s.note(func(e *entry) { e.Plan = slices.Clone(plan) })
}

// hear takes the log's word. A COMMIT may still turn into an ABORT, if the
// destination never ran the process; an ABORT is for ever.
func (s *session) hear(d migrate.Decision, reason string, index uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hearLocked(d, reason, index)
}

func (s *session) hearLocked(d migrate.Decision, reason string, index uint64) {
	s.index = max(s.index, index)
	if d == migrate.DecisionNone || d == s.decision || s.decision == migrate.DecisionAbort {
		return
	}
	s.decision, s.reason = d, reason
	s.news.interrupt()
	s.logger.Info("decision", "decision", string(d), keyReason, reason, keyPhase, string(s.entry.Phase))
	if d == migrate.DecisionAbort {
		close(s.aborted)
	} else {
		close(s.committed)
	}
}

// orderDisposal allows the source's copy to be ended.
func (s *session) orderDisposal(index uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.entry.Phase == phaseOver && s.entry.Outcome == migrate.OutcomeDisposed:
		return nil
	case s.entry.Side != migrate.SideSource || s.entry.Phase != phasePromised || s.decision == migrate.DecisionAbort:
		return status.Errorf(codes.FailedPrecondition, "the %s is %s %s, there is nothing to dispose of",
			s.entry.Side, s.entry.Phase, s.entry.Outcome)
	}
	s.hearLocked(migrate.DecisionCommit, "", index)
	select {
	case <-s.disposal:
	default:
		close(s.disposal)
	}
	return nil
}

// finish notes how the session ended, and has it reported if that is news to
// the log. What it leaves in the journal is for an agent that starts again
// before the coordinators have heard of it.
func (s *session) finish(how func(*entry)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change := func(e *entry) {
		e.Phase, e.Plan = phaseOver, nil
		e.Announced = s.decision != migrate.DecisionNone
		how(e)
	}
	if err := s.noteLocked(change); err != nil {
		// It is so all the same. An agent that starts again undoes what is
		// undone, which changes nothing.
		s.logger.Error("noting the end", keyError, err)
		change(&s.entry)
	}
	s.trouble = nil
	s.logger.Info("over", keyOutcome, string(s.entry.Outcome), keyReason, s.entry.Reason, "downtime_ms", s.entry.DowntimeMS)
	close(s.over)
	if s.entry.Announced {
		return
	}
	s.standingLocked(ended(&s.entry))
	if s.entry.Side == migrate.SideTarget {
		s.news.after = time.Now().Add(s.agent.timing.Yield)
	}
}

// drop forgets the session.
func (s *session) drop() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.agent.journal.remove(&s.entry); err != nil {
		return err
	}
	close(s.dropped)
	return nil
}

// persist calls try until it succeeds, and reports whether it has: not if the
// agent ends before, or give is closed between two tries.
func (s *session) persist(what string, give <-chan struct{}, try func(context.Context) error) bool {
	timing := s.agent.timing
	for n := 0; ; n++ {
		// Neither a client that went away nor an agent that is to stop ends
		// what has been begun here.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(s.agent.alive), timing.Undo)
		err := try(ctx)
		cancel()
		if s.agent.alive.Err() != nil {
			return false // killed meanwhile: whoever comes next finds the journal
		}
		if err == nil {
			return true
		}
		s.mu.Lock()
		s.trouble = fmt.Errorf("%s: %w", what, err)
		s.mu.Unlock()
		s.logger.Error("trying again", "what", what, keyError, err)
		timer := time.NewTimer(timing.pause(n))
		select {
		case <-timer.C:
		case <-give:
			timer.Stop()
			return false
		case <-s.agent.alive.Done():
			timer.Stop()
			return false
		}
	}
}

// await returns when the session is over, or the order's time is.
func (s *session) await(ctx context.Context) error {
	select {
	case <-s.over:
		return nil
	case <-s.agent.alive.Done():
		return status.Error(codes.Unavailable, "the agent stops")
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.trouble != nil {
		return status.Error(codes.Unavailable, s.trouble.Error())
	}
	return status.FromContextError(ctx.Err()).Err()
}
