package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/trust"
)

// errStopping ends what an agent that is to stop may give up by itself.
var errStopping = errors.New("the agent on the source was told to stop")

// An outgoing is a session's goroutine on the source.
type outgoing struct {
	*session
	migration Outgoing // nil before it was started
	config    SourceConfig
	// The page stream, open until this is over: signals cross after COMMIT.
	pageAddress string
	conn        net.Conn
	hushed      *hush // nil: this agent has not silenced the host
}

// A hush is the silence about the addresses that go along, being made.
type hush struct {
	done chan struct{}
	err  error
}

var _ SourceEvents = (*outgoing)(nil)

// begin starts a migration away from here and takes it to its end.
func (o *outgoing) begin() {
	defer o.hangUp()
	err := o.move()
	if o.agent.alive.Err() != nil {
		return // killed: the next agent finds the journal
	}
	if err == nil && !o.config.Options.Rehearse {
		o.promised()
		return
	}
	if err != nil {
		o.logger.Info("giving up", keyReason, err)
	}
	o.giveUp(err)
}

// resumeRecovered takes up what an agent that died has left.
func (o *outgoing) resumeRecovered() {
	if e := o.is(); e.Phase == phasePromised {
		o.standing(promised(e.Measured))
		o.promised()
		return
	}
	o.giveUp(errors.New("the agent on the source was lost"))
}

// move runs the engine until the process is frozen and the destination
// prepared.
func (o *outgoing) move() error {
	// An order to abort ends it, and so does an order to stop; neither does
	// once it is promised, since the engine has nothing left to do by then.
	ctx, cancel := context.WithCancelCause(o.agent.alive)
	defer cancel(nil)
	watched := make(chan struct{})
	defer func() { cancel(nil); <-watched }()
	go func() {
		defer close(watched)
		select {
		case <-o.aborted:
			cancel(errAborted)
		case <-o.agent.stopping.Done():
			cancel(errStopping)
		case <-ctx.Done():
		}
	}()
	err := o.run(ctx)
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx) // says more than what it led to
	}
	return err
}

func (o *outgoing) run(ctx context.Context) (err error) {
	if o.migration, err = o.agent.config.Source.Start(ctx, o.config); err != nil {
		return err
	}
	if o.conn, err = o.dial(ctx); err != nil {
		return err
	}
	if err := o.migration.Run(ctx, o.conn, o); err != nil {
		return err
	}
	if o.config.Options.Rehearse || o.is().Phase == phasePromised {
		return nil
	}
	return errors.New("the engine has ended without a promise")
}

// hangUp closes the page stream. The destination learns by it that there is
// nothing to wait for.
func (o *outgoing) hangUp() {
	if o.conn != nil {
		o.conn.Close()
	}
}

// dial connects to the destination's page listener.
func (o *outgoing) dial(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, o.agent.timing.Greeting)
	defer cancel()
	peer := o.is().Peer
	config := pageTLS(o.agent.config.Credentials.Client(trust.AllowOnly(trust.Identity{Role: trust.RoleAgent, Name: peer})))
	conn, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", o.pageAddress)
	if err != nil {
		return nil, fmt.Errorf("connecting to %s for its pages: %w", peer, err)
	}
	if err := limitSilence(conn.(*tls.Conn).NetConn()); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

// Progress is called by the engine.
func (o *outgoing) Progress(p migrate.Progress) {
	if p.Bytes > 0 {
		o.agent.journal.hold(holdCopying)
	}
	o.progress(p, o.migration.Measured().Rounds)
}

// Frozen is called by the engine.
func (o *outgoing) Frozen() {
	o.logger.Debug("frozen")
	o.agent.journal.hold(holdStopped)
	o.standing(frozen())
	e := o.is()
	if len(e.Addresses) == 0 || o.hushed != nil {
		return
	}
	h := &hush{done: make(chan struct{})}
	o.hushed = h
	o.agent.running.Go(func() { // it takes a while, and there is something else to do
		defer close(h.done)
		h.err = o.agent.addresses.hush(e.Migration, e.Addresses)
	})
}

// Promise is called by the engine. It notes the promise and has it sent. From
// then on this agent, and every one after it, waits for the log.
func (o *outgoing) Promise(m migrate.Measured) error {
	o.agent.journal.hold(holdPromising)
	if err := o.awaitHush(); err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case o.config.Options.Rehearse:
		return errors.New("a rehearsal promises nothing")
	case o.decision == migrate.DecisionAbort:
		return errAborted
	case o.agent.stopping.Err() != nil:
		return errStopping
	}
	if err := o.noteLocked(func(e *entry) { e.Phase, e.Measured = phasePromised, m }); err != nil {
		return err
	}
	o.agent.journal.hold(holdPromised)
	o.logger.Info("promised", "rounds", len(m.Rounds), "bytes", m.Bytes, "wire_bytes", m.WireBytes)
	o.standingLocked(promised(m))
	return nil
}

// Unfrozen is called by the engine. Nothing is undecided any more.
func (o *outgoing) Unfrozen() {
	if err := o.stay(); err != nil {
		// The next try cannot silence the host a second time, and so ends.
		o.logger.Error("ending the silence about service addresses", keyError, err)
		return
	}
	o.hushed = nil
}

// hushTimeout bounds how long a frozen process waits for the host to be silent.
const hushTimeout = time.Second

// awaitHush returns when the host is silent, if it is to be.
func (o *outgoing) awaitHush() error {
	if o.hushed == nil {
		return nil
	}
	timer := time.NewTimer(hushTimeout)
	defer timer.Stop()
	select {
	case <-o.hushed.done:
		return o.hushed.err
	case <-o.aborted:
		return errAborted
	case <-timer.C:
		return errors.New("this host could not be made silent about the service addresses in time")
	}
}

// stay ends the silence about the addresses, which stay here, if there is one.
func (o *outgoing) stay() error {
	e := o.is()
	if len(e.Addresses) == 0 || o.hushed == nil && !o.recovered {
		return nil
	}
	failed := false
	if o.hushed != nil {
		<-o.hushed.done
		failed = o.hushed.err != nil
	}
	err := o.agent.addresses.stay(e.Migration, o.heardUpTo(), e.Addresses)
	if failed && err != nil {
		o.logger.Warn("ending a silence that was none", keyError, err)
		return nil
	}
	return err
}

// promised waits for the log's word and carries it out.
func (o *outgoing) promised() {
	left, done := o.agent.leaves()
	defer done()
	select {
	case <-o.aborted:
		o.resume(func(*entry) {})
	case <-o.disposal:
		o.dispose()
	case <-left.Done():
		// It stays as it is, for the next agent on this host.
	}
}

// giveUp ends a migration that has promised nothing, resumes first and reports
// after. A nil error means that a rehearsal went well.
func (o *outgoing) giveUp(err error) {
	o.resume(func(e *entry) {
		e.Rehearsed = err == nil
		if err != nil {
			e.Reason = err.Error()
		}
		if blocked, ok := errors.AsType[*BlockedError](err); ok {
			e.Blockers = blocked.Blockers
		}
	})
}

// resume lets the process run on here.
func (o *outgoing) resume(why func(*entry)) {
	o.hangUp()
	var resumed Resumed
	done := o.persist("resuming the process", nil, func(ctx context.Context) (err error) {
		if err := o.recoverEngine(ctx); err != nil {
			return err
		}
		if o.migration != nil {
			if resumed, err = o.migration.Resume(ctx); err != nil {
				return err
			}
		}
		return o.stay()
	})
	if !done {
		return
	}
	if resumed.Lost != "" {
		o.logger.Error("the process runs on without what it had", "lost", resumed.Lost)
	}
	o.finish(func(e *entry) {
		e.Outcome, e.Lost = migrate.OutcomeResumed, resumed.Lost
		switch {
		case resumed.KilledAtSource:
			e.Outcome = migrate.OutcomeKilled
		case resumed.Ended:
			e.Outcome = migrate.OutcomeEnded
		}
		if o.migration != nil && !o.recovered {
			e.Measured = o.migration.Measured()
		}
		why(e)
		e.DowntimeMS, e.PhasesMS = migrate.Milliseconds(resumed.Downtime), resumed.PhasesMS
	})
}

// dispose ends the frozen copy: the process runs at the destination.
func (o *outgoing) dispose() {
	o.agent.journal.hold(holdDisposing)
	e, disposed := o.is(), false
	done := o.persist("ending the frozen copy", nil, func(ctx context.Context) error {
		// Without its address nobody here refuses what comes in late, and what was held
		// goes to where it is.
		if len(e.Addresses) > 0 {
			if err := o.agent.addresses.depart(o.heardUpTo(), e.Addresses); err != nil {
				return err
			}
		}
		if err := o.recoverEngine(ctx); err != nil {
			return err
		}
		if o.migration != nil && !disposed {
			if err := o.migration.Dispose(ctx); err != nil {
				return err
			}
			disposed = true
		}
		if len(e.Addresses) > 0 { // that takes long, and clients wait for the other
			return o.agent.addresses.speak(e.Migration, e.Addresses)
		}
		return nil
	})
	if done {
		o.finish(func(e *entry) { e.Outcome = migrate.OutcomeDisposed })
	}
}

// recoverEngine makes the engine's migration of a recovered session. One that
// has no plan had not begun with anything.
func (o *outgoing) recoverEngine(ctx context.Context) error {
	plan := o.is().Plan
	if o.migration != nil || !o.recovered || plan == nil {
		return nil
	}
	migration, err := o.agent.config.Source.Recover(ctx, plan, o.save)
	if err == nil {
		o.migration = migration
	}
	return err
}
