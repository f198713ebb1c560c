package agent

import (
	"context"
	"errors"
	"maps"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pagurus-project/pagurus/migrate"
	migratev1 "github.com/pagurus-project/pagurus/proto/migrate/v1"
)

// progress has the latest figures reported, if there is time for it.
func (s *session) progress(p migrate.Progress, rounds []migrate.Round) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.news.progress = &migratev1.ReportRequest_Progress{Progress: progressToProto(p, rounds)}
	s.wakeLocked()
}

// standing has something reported at once and then again and again, until
// there is a decision or something newer to report.
func (s *session) standing(event *migratev1.ReportRequest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.standingLocked(event)
}

func (s *session) standingLocked(event *migratev1.ReportRequest) {
	s.news.progress = nil
	s.news.standing = event
	s.news.interrupt() // of figures that nobody needs any more
	s.wakeLocked()
}

func (s *session) wakeLocked() {
	select {
	case s.news.wake <- struct{}{}:
	default:
	}
}

func frozen() *migratev1.ReportRequest {
	return &migratev1.ReportRequest{Event: &migratev1.ReportRequest_Frozen{Frozen: &migratev1.Frozen{}}}
}

func prepared() *migratev1.ReportRequest {
	return &migratev1.ReportRequest{Event: &migratev1.ReportRequest_Prepared{Prepared: &migratev1.Prepared{}}}
}

func promised(m migrate.Measured) *migratev1.ReportRequest {
	return &migratev1.ReportRequest{Event: &migratev1.ReportRequest_Promised{Promised: measuredToProto(m)}}
}

// ended tells that a session ended by itself.
func ended(e *entry) *migratev1.ReportRequest {
	m := e.Measured
	m.DowntimeMS = e.DowntimeMS
	m.PhasesMS = maps.Clone(m.PhasesMS)
	if m.PhasesMS == nil {
		m.PhasesMS = map[string]float64{}
	}
	maps.Copy(m.PhasesMS, e.PhasesMS)
	return &migratev1.ReportRequest{Event: &migratev1.ReportRequest_Ended{Ended: &migratev1.Ended{
		Rehearsed: e.Rehearsed, Reason: e.Reason, Blockers: findingsToProto(e.Blockers), Outcome: outcomeToProto(e.Outcome),
		Lost:     e.Lost,
		Measured: measuredToProto(m),
	}}}
}

// report tells the coordinators what there is to tell until one of them knows
// the decision. It is a goroutine of the session's own: a coordinator that
// does not answer holds nothing else up.
func (s *session) report() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-s.news.wake:
		case <-timer.C:
		case <-s.aborted:
			return
		case <-s.committed:
			return
		case <-s.dropped:
			return
		case <-s.agent.alive.Done():
			return
		}
		pause := s.agent.timing.Repeat
		if s.tell() == codes.NotFound {
			pause = max(pause, s.agent.timing.RetryMax)
		}
		timer.Reset(pause)
	}
}

// tell makes one report, if there is something to report.
func (s *session) tell() codes.Code {
	s.mu.Lock()
	req := &migratev1.ReportRequest{Ref: s.refLocked(), Host: s.agent.config.Host}
	switch {
	case s.news.standing != nil && time.Now().Before(s.news.after) && s.agent.stopping.Err() == nil:
		s.mu.Unlock()
		return codes.OK
	case s.news.standing != nil:
		req.Event = s.news.standing.GetEvent()
	case s.news.progress != nil:
		req.Event = s.news.progress
		s.news.progress = nil
	default:
		s.mu.Unlock()
		return codes.OK
	}
	ctx, cancel := context.WithCancel(s.agent.alive)
	defer cancel()
	s.news.interrupt = cancel
	s.mu.Unlock()

	if s.recovered {
		if err := s.askLog(ctx); err != nil {
			return s.unheard(ctx, err)
		}
	}
	var resp *migratev1.ReportResponse
	err := s.agent.coordinators.ask(ctx, func(ctx context.Context, c migratev1.CoordinatorClient) (err error) {
		resp, err = c.Report(ctx, req)
		return err
	})
	if err != nil {
		return s.unheard(ctx, err)
	}
	s.heard(resp.GetDecision(), resp.GetReason(), resp.GetAddressesIndex())
	return codes.OK
}

func (s *session) refLocked() *migratev1.Ref {
	return &migratev1.Ref{Migration: s.entry.Migration, Epoch: s.entry.Epoch}
}

// askLog asks for what may have been decided while there was no agent here.
func (s *session) askLog(ctx context.Context) error {
	resp, err := s.agent.decision(ctx, s.is())
	if err != nil {
		return err
	}
	if !resp.GetKnown() {
		return status.Error(codes.NotFound, "the log holds no such migration")
	}
	s.heard(resp.GetDecision(), resp.GetReason(), resp.GetAddressesIndex())
	return nil
}

// decision asks, behind a barrier, what the log says of a session's attempt.
func (a *Agent) decision(ctx context.Context, e entry) (*migratev1.DecisionResponse, error) {
	var resp *migratev1.DecisionResponse
	err := a.coordinators.ask(ctx, func(ctx context.Context, c migratev1.CoordinatorClient) (err error) {
		resp, err = c.Decision(ctx, &migratev1.DecisionRequest{
			Ref: &migratev1.Ref{Migration: e.Migration, Epoch: e.Epoch}, Host: a.config.Host,
		})
		return err
	})
	return resp, err
}

func (s *session) heard(d migratev1.Decision, reason string, index uint64) {
	decision, err := decisionOf(d)
	if err != nil {
		s.logger.Error("reading a coordinator's answer", keyError, err)
		return
	}
	if decision == migrate.DecisionNone {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hearLocked(decision, reason, index)
	if s.entry.Phase == phaseOver && !s.entry.Announced {
		if err := s.noteLocked(func(e *entry) { e.Announced = true }); err != nil {
			s.logger.Warn("noting that the end was heard of", keyError, err)
		}
	}
}

// unheard deals with a report that did not reach the leader, or that the log
// has no use for.
func (s *session) unheard(ctx context.Context, err error) codes.Code {
	code := status.Code(err)
	if ctx.Err() != nil {
		return code // overtaken by something newer
	}
	loud := s.complain(err)
	if code != codes.NotFound {
		return code
	}
	switch e := s.is(); e.Phase {
	case phaseOver:
		// Nobody will ever ask for it.
		if err := s.agent.forget(s); err != nil {
			s.logger.Error("forgetting", keyError, err)
		}
	case phaseRunning, phaseReserved:
		s.hear(migrate.DecisionAbort, "the coordinators' log holds no such migration", 0)
	default:
		if !loud {
			break
		}
		// It may have held one, and said COMMIT. Only a person can tell.
		s.logger.Error("the process stays frozen: its migration is not in the coordinators' log, so it cannot be known "+
			"whether the other host runs it", keyPhase, string(e.Phase), keyHost, e.Peer)
	}
	return code
}

// complainEvery keeps an outage of hours from filling the log.
const complainEvery = 10 * time.Second

// complain logs a report that failed, unless it has just failed the same way,
// and reports whether it did. It is called by the session's reporting goroutine
// alone.
func (s *session) complain(err error) bool {
	code, now := status.Code(err), time.Now()
	if code == s.complained.code && now.Sub(s.complained.at) < complainEvery {
		return false
	}
	s.complained.code, s.complained.at = code, now
	s.logger.Warn("reporting", keyError, err)
	return true
}

var errAborted = errors.New("the coordinators' log says that it is aborted")
