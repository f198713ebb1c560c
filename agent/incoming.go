package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/pagurus-project/pagurus/migrate"
)

// errStoppingTarget ends what nothing depends on yet.
var errStoppingTarget = errors.New("the agent on the destination was told to stop")

// An incoming is a session's goroutine at the destination.
type incoming struct {
	*session
	shell  Incoming // nil before it was made
	config TargetConfig
	conn   pageConn
}

// A pageConn is a page connection whose greeting was right. Its reader may hold
// what came behind the greeting.
type pageConn struct{ net.Conn }

// begin makes the shell, and takes the session to its end.
func (i *incoming) begin() {
	if !i.reserve() {
		return
	}
	err := i.receive()
	if i.agent.alive.Err() != nil {
		return // killed: the next agent finds the journal
	}
	if err != nil {
		i.logger.Info("giving up", keyReason, err)
		i.release(err)
		return
	}
	i.prepared()
}

// resumeRecovered takes up the shell that an agent that died has left.
func (i *incoming) resumeRecovered() {
	switch e := i.is(); e.Phase {
	case phasePrepared:
		i.standing(prepared())
		i.prepared()
	default:
		i.release(errors.New("the agent on the destination was lost"))
	}
}

// reserve answers the order to make the shell, and reports whether there is one.
func (i *incoming) reserve() bool {
	ctx, cancel := context.WithTimeout(i.agent.alive, i.agent.timing.Undo)
	defer cancel()
	i.agent.journal.hold(holdReserving)
	shell, blockers, warnings, err := i.agent.config.Target.Reserve(ctx, i.config)
	if i.agent.alive.Err() != nil {
		return false
	}
	if err != nil || len(blockers) > 0 {
		// Nothing is left, so there is nothing to remember.
		i.blockers, i.warnings, i.failed = blockers, warnings, err
		i.finish(func(e *entry) { e.Outcome, e.Announced = migrate.OutcomeReleased, true })
		if err := i.agent.forget(i.session); err != nil {
			i.logger.Error("forgetting", keyError, err)
		}
		close(i.reserved)
		return false
	}
	i.shell, i.warnings = shell, warnings
	i.logger.Info("reserved")
	close(i.reserved)
	return true
}

// receive waits for the source and takes its process in.
func (i *incoming) receive() error {
	expiry := time.NewTimer(i.agent.timing.Reserved)
	defer expiry.Stop()
	select {
	case i.conn = <-i.connections:
	case <-i.aborted:
		return errAborted
	case <-expiry.C:
		return fmt.Errorf("%s has not connected within %v", i.is().Peer, i.agent.timing.Reserved)
	case <-i.agent.stopping.Done():
		return errStoppingTarget
	case <-i.agent.alive.Done():
		return i.agent.alive.Err()
	}
	ctx, cancel := context.WithCancelCause(i.agent.alive)
	received := make(chan struct{})
	defer close(received)
	conn := i.conn
	i.agent.running.Go(func() {
		select {
		case <-i.aborted:
			cancel(errAborted)
		case <-i.agent.stopping.Done():
			cancel(errStoppingTarget)
		case <-received:
			// The engine may go on reading in the background.
		}
		select {
		case <-i.dropped:
		case <-i.agent.alive.Done():
		case <-ctx.Done():
		}
		cancel(nil)
		conn.Close() // an engine that waits for the source has to notice
	})
	err := i.shell.Receive(ctx, i.conn, i.notePrepared)
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err == nil && i.is().Phase != phasePrepared {
		return errors.New("the engine has ended without being prepared")
	}
	return err
}

// notePrepared is called by the engine, before it tells the source.
func (i *incoming) notePrepared() error {
	i.agent.journal.hold(holdBuilt)
	i.mu.Lock()
	defer i.mu.Unlock()
	switch {
	case i.decision == migrate.DecisionAbort:
		return errAborted
	case i.agent.stopping.Err() != nil:
		return errStoppingTarget
	}
	now, err := bootClock()
	if err != nil {
		return err
	}
	if err := i.noteLocked(func(e *entry) { e.Phase, e.PreparedAt = phasePrepared, now }); err != nil {
		return err
	}
	i.logger.Info("prepared")
	i.standingLocked(prepared())
	return nil
}

// prepared waits for the log's word and carries it out.
func (i *incoming) prepared() {
	left, done := i.agent.leaves()
	defer done()
	select {
	case <-i.committed:
		i.commit()
	case <-i.aborted:
		i.release(nil)
	case <-left.Done():
		// It stays as it is, for the next agent on this host.
	}
}

// commit lets the process run here.
func (i *incoming) commit() {
	i.agent.journal.hold(holdCommitting)
	addresses := i.is().Addresses
	if len(addresses) > 0 {
		i.agent.addresses.arrive(i.heardUpTo(), addresses)
	}
	var ran Ran
	done := i.persist("running the process", i.aborted, func(ctx context.Context) error {
		if err := i.recoverEngine(ctx); err != nil {
			return err
		}
		if i.shell == nil {
			return errors.New("the journal has no plan of its shell")
		}
		var err error
		ran, err = i.shell.Commit(ctx)
		switch {
		case err != nil:
		case ran.NeverRan:
			err = i.giveAddressesBack()
		case ran.Downtime == 0:
			err = i.addLostTime(&ran)
		}
		return err
	})
	switch {
	case !done && i.agent.alive.Err() != nil:
		return
	case !done:
		// The log has turned to ABORT: an operator has vouched that it does
		// not run here, so it must not.
		i.release(nil)
		return
	}
	i.finish(func(e *entry) {
		e.DowntimeMS, e.PhasesMS = migrate.Milliseconds(ran.Downtime), ran.PhasesMS
		e.Outcome, e.Reason = migrate.OutcomeRunning, ran.Detail
		if ran.NeverRan {
			e.Outcome = migrate.OutcomeNeverRan
		}
	})
	if ran.NeverRan {
		i.hangUp()
	}
}

// addLostTime makes up for what an agent that died has measured: how long the
// shell has been prepared by now is known, and is nearly all of it.
func (i *incoming) addLostTime(ran *Ran) error {
	now, err := bootClock()
	if err != nil {
		return err
	}
	ran.Downtime = time.Duration(now - i.is().PreparedAt)
	ran.PhasesMS = map[string]float64{migrate.PhaseDecide: migrate.Milliseconds(ran.Downtime)}
	return nil
}

// giveAddressesBack takes off what has come here, if there was a COMMIT, which has come
// to nothing then: by this agent or one before it, or by a coordinator's list.
func (i *incoming) giveAddressesBack() error {
	if addresses := i.is().Addresses; len(addresses) > 0 {
		return i.agent.addresses.depart(i.heardUpTo(), addresses)
	}
	return nil
}

// release removes the shell. err is why it is given up without the log's word.
func (i *incoming) release(err error) {
	i.hangUp()
	done := i.persist("removing the shell", nil, func(ctx context.Context) error {
		if err := i.recoverEngine(ctx); err != nil {
			return err
		}
		if i.shell != nil {
			if err := i.shell.Release(ctx); err != nil {
				return err
			}
		}
		return i.giveAddressesBack()
	})
	if done {
		i.finish(func(e *entry) {
			e.Outcome = migrate.OutcomeReleased
			if err != nil {
				e.Reason = err.Error()
			}
		})
		// From now on no connection is accepted; one may have been meanwhile.
		select {
		case i.conn = <-i.connections:
			i.hangUp()
		default:
		}
	}
}

// hangUp closes the page stream, if there is one.
func (i *incoming) hangUp() {
	if i.conn.Conn != nil {
		i.conn.Close()
	}
}

// recoverEngine makes the engine's shell of a recovered session.
func (i *incoming) recoverEngine(ctx context.Context) error {
	plan := i.is().Plan
	if i.shell != nil || !i.recovered || plan == nil {
		return nil
	}
	shell, err := i.agent.config.Target.Recover(ctx, plan, i.save)
	if err == nil {
		i.shell = shell
	}
	return err
}
