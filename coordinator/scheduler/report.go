package scheduler

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pagurus-project/pagurus/coordinator/logline"
	"github.com/pagurus-project/pagurus/migrate"
	migratev1 "github.com/pagurus-project/pagurus/proto/migrate/v1"
)

// Report takes what an agent has to tell and answers with the decision, if
// there is one. The caller has made sure that the agent speaks for its host.
//
// Errors: UNAVAILABLE if this server does not lead, NOT_FOUND for a migration
// that the log does not hold, PERMISSION_DENIED for a host that is not part of
// it, INVALID_ARGUMENT for what the side cannot have seen.
func (s *Scheduler) Report(ctx context.Context, req *migratev1.ReportRequest) (*migratev1.ReportResponse, error) {
	r, side, err := s.find(ctx, req.GetRef(), req.GetHost())
	if err != nil {
		return nil, err
	}
	if d, reason := decisionFor(r, req.GetRef()); d != migrate.DecisionNone {
		return &migratev1.ReportResponse{Decision: decisionToProto(d), Reason: reason, AddressesIndex: s.addressesIndex()}, nil
	}
	w, err := s.worker(r.ID)
	if err != nil || w == nil {
		return nil, status.Error(codes.Unavailable, ErrNotLeading.Error())
	}
	if r.State != migrate.StatePrecopy || req.GetRef().GetEpoch() != r.Epoch {
		return nil, status.Errorf(codes.FailedPrecondition, "migration %s is in %s of epoch %d", r.ID, r.State, r.Epoch)
	}
	if err := w.tell(r, side, req); err != nil {
		return nil, err
	}
	s.wake(r.ID)
	return &migratev1.ReportResponse{}, nil
}

// tell notes an event of the attempt and wakes the step that waits for it.
func (w *worker) tell(r migrate.Record, side migrate.Side, req *migratev1.ReportRequest) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	a := &w.attempt
	a.Epoch = r.Epoch
	fromSource := side == migrate.SideSource
	switch e := req.GetEvent().(type) {
	case *migratev1.ReportRequest_Progress:
		a.Progress = progress(e.Progress)
		if !a.Promised {
			a.Measured.Rounds = rounds(e.Progress.GetRounds())
			a.Measured.Bytes, a.Measured.WireBytes = a.Progress.Bytes, a.Progress.WireBytes
		}
	case *migratev1.ReportRequest_Frozen:
		if !fromSource {
			return w.impossible(side, req)
		}
		a.Frozen = true
	case *migratev1.ReportRequest_Prepared:
		if fromSource {
			return w.impossible(side, req)
		}
		a.Prepared = true
	case *migratev1.ReportRequest_Promised:
		if !fromSource {
			return w.impossible(side, req)
		}
		a.Promised, a.Frozen = true, true
		a.Measured = measured(e.Promised)
	case *migratev1.ReportRequest_Ended:
		if fromSource {
			a.Measured = measured(e.Ended.GetMeasured())
			a.Ended = &migrate.Ended{
				Rehearsed: e.Ended.GetRehearsed(), Reason: clip(e.Ended.GetReason()),
				Blockers: findings(e.Ended.GetBlockers()), Outcome: sourceOutcomes[e.Ended.GetOutcome()], Lost: clip(e.Ended.GetLost()),
			}
		} else {
			a.Gone = "lost at " + r.To + ": " + clip(e.Ended.GetReason())
		}
	default:
		return w.impossible(side, req)
	}
	if fromSource {
		w.heard = time.Now()
	}
	notify(w.told)
	return nil
}

func (w *worker) impossible(side migrate.Side, req *migratev1.ReportRequest) error {
	w.logger.Warn("impossible report", logline.KeyHost, req.GetHost(), logline.KeySide, side)
	return status.Errorf(codes.InvalidArgument, "the %s cannot report %T", side, req.GetEvent())
}

// Decision answers what the log says of a migration, no older than the call.
func (s *Scheduler) Decision(ctx context.Context, req *migratev1.DecisionRequest) (*migratev1.DecisionResponse, error) {
	if err := s.log.Barrier(ctx); err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	r, _, err := s.find(ctx, req.GetRef(), req.GetHost())
	if status.Code(err) == codes.NotFound {
		return &migratev1.DecisionResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	d, reason := decisionFor(r, req.GetRef())
	return &migratev1.DecisionResponse{
		Decision: decisionToProto(d), Reason: reason, Known: true, Epoch: r.Epoch, State: string(r.State),
		AddressesIndex: s.addressesIndex(),
	}, nil
}

// find returns the record that an agent asks about, and the agent's side.
func (s *Scheduler) find(ctx context.Context, ref *migratev1.Ref, host string) (migrate.Record, migrate.Side, error) {
	if _, err := s.Leading(); err != nil {
		return migrate.Record{}, "", status.Error(codes.Unavailable, err.Error())
	}
	r, ok := s.log.Record(ref.GetMigration())
	if !ok {
		// Not heard of yet, or never: an agent may act on the difference.
		if err := s.log.Barrier(ctx); err != nil {
			return r, "", status.Error(codes.Unavailable, err.Error())
		}
		if r, ok = s.log.Record(ref.GetMigration()); !ok {
			return r, "", status.Errorf(codes.NotFound, "no migration %q", clip(ref.GetMigration()))
		}
	}
	switch host {
	case r.From:
		return r, migrate.SideSource, nil
	case r.To:
		return r, migrate.SideTarget, nil
	}
	return r, "", status.Errorf(codes.PermissionDenied, "%s is no part of migration %s", host, r.ID)
}

// decisionFor is the record's decision as far as it concerns the asker's
// attempt. One that was overtaken by a newer one will never be committed.
func decisionFor(r migrate.Record, ref *migratev1.Ref) (migrate.Decision, string) {
	if ref.GetEpoch() < r.Epoch {
		return migrate.DecisionAbort, "a newer attempt has taken its place"
	}
	return r.Decision(), r.Reason
}
