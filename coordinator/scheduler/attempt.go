package scheduler

import (
	"context"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pagurus-project/pagurus/coordinator/logline"
	"github.com/pagurus-project/pagurus/migrate"
	migratev1 "github.com/pagurus-project/pagurus/proto/migrate/v1"
)

// lead takes an attempt from its start to the decision. Beside it attend
// starts the source and sees that it lives; lead itself waits for nothing but
// reports, so that the one that completes PREPARED and promise makes it write
// the decision in the next moment. All of its other proposals are to abort.
func (w *worker) lead(ctx context.Context, r migrate.Record) error {
	attending, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	lost := make(chan string, 1)
	wg.Go(func() {
		if reason := w.attend(attending, r); reason != "" {
			lost <- reason
		}
	})

	var overdue <-chan time.Time // once the source has promised
	for {
		a := w.known()
		if d, ok := a.Proposal(r); ok {
			return w.decide(ctx, d)
		}
		if a.Promised && overdue == nil {
			timer := time.NewTimer(w.s.timing.Prepared)
			defer timer.Stop()
			overdue = timer.C
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-w.told:
		case reason := <-lost:
			// A promise that was heard meanwhile is the better news.
			if a := w.known(); !a.Promised {
				return w.decide(ctx, a.Abort(reason))
			}
		case <-overdue:
			return w.decide(ctx, w.known().Abort(
				fmt.Sprintf("%s was not prepared within %v of the source's promise", r.To, w.s.timing.Prepared)))
		}
	}
}

// decide writes a proposal; what the log says then is the record's business.
func (w *worker) decide(ctx context.Context, d migrate.Decided) error {
	d.At = now()
	r, err := w.s.write(ctx, w.id, d)
	if err == nil {
		w.logger.Info("decided", "decision", r.Decision(), logline.KeyState, r.State, logline.KeyReason, r.Reason)
	}
	return err
}

// attend starts the source, or finds out that it was started, and asks it for
// a sign of life when there was none for long. It returns why the attempt has
// to be given up, or nothing when ctx has ended or the source has promised:
// from then on its silence changes nothing.
func (w *worker) attend(ctx context.Context, r migrate.Record) (reason string) {
	w.hear()
	start := &migratev1.StartRequest{Ref: w.ref(r), Pid: int32(r.PID), Options: optionsToProto(r.Options), DestinationHost: r.To}
	for _, p := range r.Addresses {
		start.Addresses = append(start.Addresses, p.String())
	}
	if w.reservation != nil {
		start.PageAddress, start.Token = w.reservation.pageAddress, w.reservation.token
	}
	if reason := w.start(ctx, r, start); reason != "" {
		return reason
	}
	// Without a page address Start is a question.
	question := &migratev1.StartRequest{Ref: start.GetRef(), Pid: start.GetPid()}
	for {
		if !sleep(ctx, w.s.timing.Silence-w.silence()) || w.known().Promised {
			return ""
		}
		if w.silence() < w.s.timing.Silence {
			continue
		}
		err := w.startOnce(ctx, r, question, w.s.timing.Ask)
		switch {
		case err == nil || ctx.Err() != nil || w.silence() < w.s.timing.Silence:
		case status.Code(err) == codes.NotFound:
			return r.From + " has lost the migration"
		default:
			return fmt.Sprintf("%s has been silent for %v", r.From, w.s.timing.Silence)
		}
	}
}

func (w *worker) start(ctx context.Context, r migrate.Record, req *migratev1.StartRequest) (reason string) {
	for n := 0; ; n++ {
		err := w.startOnce(ctx, r, req, w.s.timing.Order)
		switch {
		case err == nil:
			return ""
		case ctx.Err() != nil:
			return ""
		case status.Code(err) == codes.NotFound && req.GetPageAddress() == "":
			return "the coordinator was lost before it could start the migration on " + r.From
		case !transient(err):
			return fmt.Sprintf("%s could not start: %s", r.From, message(err))
		case w.silence() >= w.s.timing.Silence:
			return fmt.Sprintf("%s has been silent for %v", r.From, w.s.timing.Silence)
		}
		if !sleep(ctx, w.s.timing.pause(n)) {
			return ""
		}
	}
}

func (w *worker) startOnce(ctx context.Context, r migrate.Record, req *migratev1.StartRequest, timeout time.Duration) error {
	return w.s.ask(ctx, r.From, timeout, func(ctx context.Context, agent migratev1.AgentClient) error {
		_, err := agent.Start(ctx, req)
		if err == nil {
			w.hear()
		}
		return err
	})
}

// hear notes that the source is alive.
func (w *worker) hear() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.heard = time.Now()
}

// silence is how long the source has not been heard.
func (w *worker) silence() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return time.Since(w.heard)
}
