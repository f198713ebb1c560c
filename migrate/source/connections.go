package source

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/migrate/resource"
	"github.com/pagurus-project/pagurus/migrate/wire"
	"github.com/pagurus-project/pagurus/tcprepair/acceptqueue"
	"github.com/pagurus-project/pagurus/tcprepair/hold"
)

// Connections at the addresses that go along have a way of their own through a
// migration:
//
//	prepareHold            a place to hold packets; nothing is held
//	awaitClosed            what the program has closed long ago comes to its end
//	settleConnections      new connections are held, those that have begun come to be
//	beginHold              it is stopped, what it has closed by now comes to its end; then,
//	                       beside the dump, all packets are held
//	mustBeSettled          it is still so
//	dumpConnections        the tree does not run any more: sockets are read, in repair mode
//	├─ resumeConnections   it runs on: out of repair mode, before the first thread runs,
//	│                      and nothing that the host sends is dropped any more
//	│  deliverHeld         what was held is delivered
//	└─ followDestination   the destination has heard the decision first, and says so
//	   handOverWaiting     what waits to be accepted goes there
//	   forwardHeld         it runs there: what was held goes there, and what comes late, too
const (
	// closedTake is how long connections may take to end that the program has closed.
	// A client can be slow with reading.
	closedTake = 10 * time.Second
	// closingTakes is the same for those that it closes just before it is stopped: some
	// round trips, for which it stands still.
	closingTakes = 100 * time.Millisecond
	// handshakesTake is the same for those that have begun: several round trips, and
	// less than what lets a client that waits send its SYN again.
	handshakesTake = 200 * time.Millisecond
	// lateTake is how long nothing must have come for us to be sure of it.
	lateTake = time.Second
)

// prepareHold makes a place to hold the packets to addresses that go along.
func (m *Migration) prepareHold() error {
	if len(m.config.Addresses) == 0 {
		return nil
	}
	c := hold.Config{Name: hold.NameOf(fmt.Sprint(m.config.Migration, " ", m.config.Epoch))}
	var err error
	if c.Devices, err = resource.Devices(); err != nil {
		return err
	}
	for _, p := range m.config.Addresses {
		c.Flows = append(c.Flows, hold.Flow{Local: netip.AddrPortFrom(p.Addr(), 0)})
	}
	m.plan.Hold = c.Name
	if err := m.save(); err != nil {
		return err
	}
	m.hold, err = hold.Prepare(c)
	return err
}

// awaitClosed waits for connections that the program has closed, and reports whether that
// took so long that the process has written much meanwhile.
func (m *Migration) awaitClosed(ctx context.Context) (long bool, err error) {
	if m.hold == nil {
		return false, nil
	}
	began := time.Now()
	unowned, err := resource.ListUnowned()
	if err != nil {
		return false, err
	}
	closed := unowned.Unsettled(m.config.Addresses, nil).Closed
	if len(closed) == 0 {
		return false, nil
	}
	// Others may be closed all the time.
	slow := func(now resource.Unsettled) []string {
		return slices.DeleteFunc(slices.Clone(now.Closed), func(c string) bool { return !slices.Contains(closed, c) })
	}
	left, err := m.untilSettled(ctx, closedTake, slow)
	if err == nil {
		err = unsettledError("connections that the process has closed have not come to their end", left)
	}
	return time.Since(began) > longWait, err
}

// longWait is long for a process that is about to be frozen.
const longWait = 50 * time.Millisecond

// settleConnections holds new connections, and waits for those that have begun.
func (m *Migration) settleConnections(ctx context.Context) error {
	if m.hold == nil {
		return nil
	}
	if err := m.hold.BeginHandshakes(); err != nil {
		return fmt.Errorf("holding new connections: %w", err)
	}
	// A client that does not answer is not waited for.
	_, err := m.untilSettled(ctx, handshakesTake, func(u resource.Unsettled) []string {
		m.closing = len(u.Closed) > 0
		return slices.Concat(u.Handshakes, u.Waiting, u.Stuck)
	})
	return err
}

// untilSettled looks again and again for what of it is to pass, and returns what has not.
func (m *Migration) untilSettled(ctx context.Context, patience time.Duration, what func(resource.Unsettled) []string) ([]string, error) {
	const first, longest = time.Millisecond, 50 * time.Millisecond
	began := time.Now()
	for pause := time.Duration(first); ; pause = min(2*pause, longest) {
		unowned, err := resource.ListUnowned()
		if err != nil {
			return nil, err
		}
		left := what(unowned.Unsettled(m.config.Addresses, nil))
		if len(left) == 0 || time.Since(began) > patience {
			return left, nil
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(pause):
		}
	}
}

func unsettledError(what string, left []string) error {
	if len(left) == 0 {
		return nil
	}
	return fmt.Errorf("%s: %s, %d in all", what, strings.Join(left[:min(len(left), 3)], ", "), len(left))
}

// A begun hold is what is known when everything is held.
type begun struct {
	unowned   resource.Unowned // since then
	timeWaits image.TimeWaits
	err       error
}

// beginHold holds all packets, in the background, and looks for what the kernel has still
// to do. What the program has closed until now may come to its end before: no more is
// closed while it stands still.
func (m *Migration) beginHold(ctx context.Context) error {
	if m.hold == nil {
		return nil
	}
	if m.closing {
		_, err := m.untilSettled(ctx, closingTakes, func(u resource.Unsettled) []string { return u.Closed })
		if err != nil {
			return err
		}
	}
	done := make(chan begun, 1)
	m.begun = done
	go func() {
		b := begun{err: m.hold.Begin()}
		if b.err == nil {
			var listing sync.WaitGroup
			listing.Go(func() { b.timeWaits = m.listTimeWaits() })
			b.unowned, b.err = resource.ListUnowned()
			listing.Wait()
		}
		done <- b
	}()
	return nil
}

func (m *Migration) awaitBegun() begun {
	if m.begun == nil {
		return begun{}
	}
	b := <-m.begun
	m.begun = nil
	return b
}

// mustBeSettled makes sure that all packets are held, and that the kernel has nothing
// to do any more for connections that the image does not have. All threads are stopped.
func (m *Migration) mustBeSettled() error {
	b, listeners := m.awaitBegun(), resource.Listeners(m.image)
	if b.err != nil {
		return fmt.Errorf("holding packets: %w", b.err)
	}
	if m.hold == nil && len(listeners) > 0 {
		var err error
		if b.unowned, err = resource.ListUnowned(); err != nil {
			return err
		}
	}
	u := b.unowned.Unsettled(m.config.Addresses, listeners)
	if len(u.Waiting) > 0 && resource.CanFillListeners() != nil {
		u.Stuck, u.Waiting = append(u.Stuck, u.Waiting...), nil
	}
	err := errors.Join(
		unsettledError("connections that the process has closed have not come to their end", u.Closed),
		unsettledError("connections wait for the process to accept them", u.Stuck))
	if err != nil {
		return fmt.Errorf("%w: %w", resource.ErrTryAgain, err)
	}
	m.image.Waiting, m.image.TimeWaits = len(u.Waiting), b.timeWaits
	return nil
}

// dumpConnections reads the sockets with connections, and what waits in others. The tree does
// not run any more.
func (m *Migration) dumpConnections(ctx context.Context) error {
	m.plan.Connections, m.plan.SocketFiles = resource.ToResume(m.image), resource.SocketFiles(m.image)
	m.plan.Looked = resource.ToLookAt(m.image)
	if len(m.plan.Connections) == 0 && len(m.plan.SocketFiles) == 0 && len(m.plan.Looked) == 0 {
		return nil
	}
	if err := m.save(); err != nil {
		return err
	}
	if err := m.dump.DumpQueues(ctx); err != nil {
		return err
	}
	if err := m.blocked(); err != nil {
		return err
	}
	return resource.DumpConnections(m.image)
}

// resumeConnections takes the sockets out of repair mode, and makes those that were looked at
// what they were. The tree stands still, and has
// not run since they were read: later they are the program's.
func (m *Migration) resumeConnections() {
	gone := func(pid int) bool { return !slices.Contains(m.pids(), pid) }
	here := slices.DeleteFunc(slices.Clone(m.plan.Connections), func(c resource.Connection) bool { return gone(c.PID) })
	looked := slices.DeleteFunc(slices.Clone(m.plan.Looked), func(l resource.Looked) bool { return gone(l.PID) })
	m.lose("connections lost: ", resource.ResumeConnections(here)...)
	m.lose("options of sockets lost: ", resource.Unlook(looked)...)
	m.unforward()
	m.letOut()
}

// letOut ends the dropping of what the tree sends, before it runs again. What fails is
// tried again when the hold is ended.
func (m *Migration) letOut() {
	m.awaitBegun() // what it says was told before, or is of no interest
	switch {
	case m.hold != nil:
		_ = m.hold.LetOut()
	case m.forwarding != nil: // an operator has turned a decision round
		_ = m.forwarding.LetOut()
	case m.plan.Hold != "": // of an agent that has taken what was held along
		_ = hold.LetThrough(m.plan.Hold)
	}
	switch {
	case m.staying != nil:
		_ = m.staying.LetOut()
	case m.plan.StayingHold != "":
		_ = hold.LetThrough(m.plan.StayingHold)
	}
}

// deliverHeld delivers what was held to this host, on which the tree runs again, and
// holds no more. What is lost TCP sends again.
func (m *Migration) deliverHeld(ctx context.Context) {
	for _, h := range []*hold.Hold{m.hold, m.staying} {
		if h != nil {
			_ = h.Deliver(ctx)
		}
	}
}

// endHold takes the hold away: in the background, as that takes a tenth of a second, or,
// if it is another agent's, at once.
func (m *Migration) endHold() error {
	if h := m.hold; h != nil {
		m.hold, m.plan.Hold = nil, ""
		m.host.inBackground(func() error { return m.host.persistently(h.Close) })
	}
	m.endStaying()
	var errs []error
	for _, name := range []string{m.plan.Hold, m.plan.StayingHold} {
		if name != "" {
			errs = append(errs, hold.Remove(name))
		}
	}
	return errors.Join(errs...)
}

// followDestination does what cannot wait for Dispose, which comes by way of the coordinator,
// when the destination has heard COMMIT. It ends with the connection.
func (m *Migration) followDestination(conn net.Conn) {
	if err := conn.SetReadDeadline(time.Time{}); err != nil {
		return
	}
	defer context.AfterFunc(m.host.alive, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })()
	for {
		reply, err := wire.ReadReply(conn)
		switch {
		case err != nil:
			return
		case reply.Kind == wire.Accepting:
			m.handOverWaiting()
		case reply.Kind == wire.Running:
			m.forwardSoon()
			return
		}
	}
}

// handOverWaiting accepts what waits in the tree's listeners and sends it to the destination,
// which waits for it. It is kept, should a decision be turned round.
func (m *Migration) handOverWaiting() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.resuming || m.over || m.killing || m.waiting != nil {
		return
	}
	m.waiting = resource.DrainListeners(m.image)
	payload, err := m.waiting.Encode()
	if err == nil {
		ctx, cancel := context.WithTimeout(m.host.alive, forwardTimeout)
		defer cancel()
		err = m.sender.Message(ctx, wire.KindQueues, payload)
	}
	if err != nil { // the destination does not wait for ever, and tells
		m.lose("connections that waited to be accepted were not sent: ", err)
	}
}

// putWaitingBack undoes that.
func (m *Migration) putWaitingBack() {
	waiting := m.waiting
	if waiting == nil || len(waiting.Queues) == 0 {
		return
	}
	m.waiting = nil // later the listeners are the program's
	filler, err := acceptqueue.NewFiller()
	if err != nil {
		m.lose("connections lost: ", err)
		return
	}
	m.lose("connections lost: ", resource.FillListeners(filler, waiting)...)
	_ = filler.Close() // that was all
}

// forwardSoon forwards what was held, as soon as the addresses are not this host's any more.
func (m *Migration) forwardSoon() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.resuming || m.over || m.killing {
		return
	}
	ctx, cancel := context.WithTimeout(m.host.alive, forwardTimeout)
	defer cancel()
	_ = m.forwardStaying(ctx) // else Dispose does
	// The addresses are taken off by the same decision, at about the same time.
	for waited := time.Duration(0); m.hold != nil && waited < departTakes; waited += departPause {
		if here, err := m.hold.IsHere(); err == nil && !here {
			m.forwardHeld()
			return
		}
		<-time.After(departPause)
	}
}

// departTakes is how long addresses may take to be taken off, before that is left to Dispose.
const (
	departTakes = 20 * time.Millisecond
	departPause = 500 * time.Microsecond
)

// forwardHeld sends what was held, and what still comes, on to the host that has the
// addresses by now.
func (m *Migration) forwardHeld() {
	if h := m.hold; h != nil {
		m.hold, m.plan.Hold, m.forwarding = nil, "", h
		m.host.inBackground(func() error {
			err := h.Forward(m.host.alive, lateTake)
			return errors.Join(err, m.host.persistently(h.Close))
		})
	}
}
