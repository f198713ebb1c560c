package scheduler

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pagurus-project/pagurus/coordinator/logline"
	"github.com/pagurus-project/pagurus/migrate"
	migratev1 "github.com/pagurus-project/pagurus/proto/migrate/v1"
)

// errAnswer says that an agent's answer makes no sense: it is asked again, as
// it may be another one by then.
var errAnswer = errors.New("unexpected answer")

// order gives an order again and again until it is answered, which may be long
// after the host has been lost. It fails only if ctx ends.
func (w *worker) order(ctx context.Context, r migrate.Record, side migrate.Side, name string,
	call func(context.Context, migratev1.AgentClient) error,
) error {
	host := r.Host(side)
	for n := 0; ; n++ {
		err := w.s.ask(ctx, host, w.s.timing.Order, call)
		if err == nil {
			w.waiting("")
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		// The first few tries are nothing to talk about.
		if n >= 3 {
			w.waiting(fmt.Sprintf("waiting for %s to %s: %s", host, name, message(err)))
		}
		if !sleep(ctx, w.s.timing.pause(n)) {
			return ctx.Err()
		}
	}
}

// ask gives one order to an agent.
func (s *Scheduler) ask(ctx context.Context, host string, timeout time.Duration,
	call func(context.Context, migratev1.AgentClient) error,
) error {
	agent, err := s.agents.Agent(host)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return call(ctx, agent)
}

// addressesIndex says how much of the log an order takes account of: hosts that hear
// of a decision know which lists of service addresses are older.
func (s *Scheduler) addressesIndex() uint64 {
	_, index := s.log.Addresses()
	return index
}

// commit tells the destination that it runs the process.
func (w *worker) commit(ctx context.Context, r migrate.Record) error {
	var event migrate.Event
	err := w.order(ctx, r, migrate.SideTarget, "run the process", func(ctx context.Context, agent migratev1.AgentClient) error {
		resp, err := agent.Decide(ctx, &migratev1.DecideRequest{Ref: w.ref(r), Decision: migratev1.Decision_DECISION_COMMIT, AddressesIndex: w.s.addressesIndex()})
		if err != nil {
			return err
		}
		switch resp.GetOutcome() {
		case migratev1.Outcome_OUTCOME_RUNNING:
			event = running(resp)
			return nil
		case migratev1.Outcome_OUTCOME_NEVER_RAN:
			event = migrate.NeverRan{Reason: fmt.Sprintf("%s could not run it: %s", r.To, clip(resp.GetDetail())), At: now()}
			return nil
		case migratev1.Outcome_OUTCOME_UNKNOWN:
			// It may have run the process and lost its memory together with
			// it. Only a person can tell.
			return fmt.Errorf("%s does not know the migration; if the process cannot be running there, fence it", r.To)
		}
		return fmt.Errorf("%w to COMMIT: %s", errAnswer, resp.GetOutcome())
	})
	if err != nil {
		return err
	}
	return w.write(ctx, event)
}

func running(resp *migratev1.DecideResponse) migrate.Running {
	return migrate.Running{DowntimeMS: Finite(resp.GetDowntimeMs()), PhasesMS: phases(resp.GetPhasesMs())}
}

// dispose tells the source to end its frozen copy.
func (w *worker) dispose(ctx context.Context, r migrate.Record) error {
	err := w.order(ctx, r, migrate.SideSource, "end its copy", func(ctx context.Context, agent migratev1.AgentClient) error {
		_, err := agent.Dispose(ctx, &migratev1.DisposeRequest{Ref: w.ref(r), AddressesIndex: w.s.addressesIndex()})
		return unlessNotFound(err)
	})
	if err != nil {
		return err
	}
	w.logger.Info("moved", logline.KeyHost, r.To)
	return w.write(ctx, migrate.SourceSettled{Outcome: migrate.OutcomeDisposed, At: now()})
}

// abort tells both sides that the source runs the process.
func (w *worker) abort(ctx context.Context, r migrate.Record, effects []migrate.Effect) error {
	return each(effects, func(side migrate.Side) error {
		var event migrate.Event
		err := w.order(ctx, r, side, "take the abort", func(ctx context.Context, agent migratev1.AgentClient) (err error) {
			resp, err := agent.Decide(ctx, &migratev1.DecideRequest{
				Ref: w.ref(r), Decision: migratev1.Decision_DECISION_ABORT, Reason: r.Reason, AddressesIndex: w.s.addressesIndex(),
			})
			if err != nil {
				return err
			}
			if side == migrate.SideSource {
				event, err = sourceSettled(resp)
			} else {
				event, err = targetSettled(resp)
			}
			return err
		})
		if err != nil {
			return err
		}
		return w.write(ctx, event)
	})
}

func sourceSettled(resp *migratev1.DecideResponse) (migrate.Event, error) {
	event := migrate.SourceSettled{DowntimeMS: Finite(resp.GetDowntimeMs()), PhasesMS: phases(resp.GetPhasesMs()), Lost: clip(resp.GetLost()), At: now()}
	var ok bool
	if event.Outcome, ok = sourceOutcomes[resp.GetOutcome()]; !ok {
		return nil, fmt.Errorf("%w of the source to ABORT: %s", errAnswer, resp.GetOutcome())
	}
	return event, nil
}

// sourceOutcomes are how a migration can end at a source without a promise or
// with an ABORT.
var sourceOutcomes = map[migratev1.Outcome]migrate.Outcome{
	migratev1.Outcome_OUTCOME_RESUMED:          migrate.OutcomeResumed,
	migratev1.Outcome_OUTCOME_KILLED_AT_SOURCE: migrate.OutcomeKilled,
	migratev1.Outcome_OUTCOME_ENDED:            migrate.OutcomeEnded,
	migratev1.Outcome_OUTCOME_UNKNOWN:          migrate.OutcomeUnknown,
}

func targetSettled(resp *migratev1.DecideResponse) (migrate.Event, error) {
	switch resp.GetOutcome() {
	case migratev1.Outcome_OUTCOME_RELEASED:
		return migrate.TargetSettled{Outcome: migrate.OutcomeReleased}, nil
	case migratev1.Outcome_OUTCOME_NEVER_RAN:
		return migrate.TargetSettled{Outcome: migrate.OutcomeNeverRan}, nil
	case migratev1.Outcome_OUTCOME_UNKNOWN:
		return migrate.TargetSettled{Outcome: migrate.OutcomeUnknown}, nil
	}
	return nil, fmt.Errorf("%w of the destination to ABORT: %s", errAnswer, resp.GetOutcome())
}

// forget lets both sides drop what they remember.
func (w *worker) forget(ctx context.Context, r migrate.Record, effects []migrate.Effect) error {
	w.logger.Info("settled", logline.KeyState, r.State, logline.KeyReason, r.Reason)
	err := each(effects, func(side migrate.Side) error {
		return w.order(ctx, r, side, "forget it", func(ctx context.Context, agent migratev1.AgentClient) error {
			_, err := agent.Forget(ctx, &migratev1.ForgetRequest{Ref: w.ref(r)})
			return unlessNotFound(err)
		})
	})
	if err != nil {
		return err
	}
	return w.write(ctx, migrate.Forgotten{})
}

// unlessNotFound takes the answer of an agent that knows nothing of the
// migration for a done order.
func unlessNotFound(err error) error {
	if status.Code(err) == codes.NotFound {
		return nil
	}
	return err
}

// transient reports whether an order that failed so may succeed if repeated.
func transient(err error) bool {
	if errors.Is(err, ErrNoSuchHost) {
		return true
	}
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled, codes.ResourceExhausted, codes.Aborted:
		return true
	}
	return false
}

// message is what an error says, short enough for the log.
func message(err error) string { return clip(Message(err)) }

// Message is what an error says, without gRPC's frame around it.
func Message(err error) string {
	if s, ok := status.FromError(err); ok {
		return s.Message()
	}
	return err.Error()
}

func now() time.Time { return time.Now().UTC() }
