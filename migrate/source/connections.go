package source

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/pagurus-project/pagurus/migrate/resource"
	"github.com/pagurus-project/pagurus/tcprepair/hold"
)

// Connections at the addresses that go along have a way of their own through a
// migration:
//
//	prepareHold            a place to hold packets; nothing is held
//	settleConnections      what the program has closed comes to its end, new connections
//	                       are held, those that have begun come to be
//	beginHold              beside the dump: all packets are held
//	mustBeSettled          it is still so
//	dumpConnections        the tree does not run any more: sockets are read, in repair mode
//	├─ resumeConnections   it runs on: out of repair mode, before the first thread runs,
//	│                      and nothing that the host sends is dropped any more
//	│  deliverHeld         what was held is delivered
//	└─ forwardHeld         it runs elsewhere: that goes there, and what comes late, too
const (
	// closedTake is how long connections may take to end that the program has closed.
	// A client can be slow with reading.
	closedTake = 10 * time.Second
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
	devices, err := net.Interfaces()
	if err != nil {
		return fmt.Errorf("listing network devices: %w", err)
	}
	for _, d := range devices {
		if !hold.IsOwn(d.Name) {
			c.Devices = append(c.Devices, d.Name)
		}
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

// settleConnections waits until the kernel has done what nobody can do in its place.
func (m *Migration) settleConnections(ctx context.Context) error {
	if m.hold == nil {
		return nil
	}
	closed := func(u resource.Unsettled) []string { return u.Closed }
	if left, err := m.untilSettled(ctx, closedTake, closed); err != nil || len(left) > 0 {
		return errors.Join(err, unsettledError("connections that the process has closed have not come to their end", left))
	}
	if err := m.hold.BeginHandshakes(); err != nil {
		return fmt.Errorf("holding new connections: %w", err)
	}
	// A client that does not answer is not waited for.
	_, err := m.untilSettled(ctx, handshakesTake, func(u resource.Unsettled) []string { return append(u.Handshakes, u.Waiting...) })
	return err
}

// untilSettled looks again and again for what of it is to pass, and returns what has not.
func (m *Migration) untilSettled(ctx context.Context, patience time.Duration, what func(resource.Unsettled) []string) ([]string, error) {
	const first, longest = time.Millisecond, 50 * time.Millisecond
	began := time.Now()
	for pause := time.Duration(first); ; pause = min(2*pause, longest) {
		u, err := resource.FindUnsettled(m.config.Addresses, nil)
		if err != nil {
			return nil, err
		}
		left := what(u)
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

// beginHold holds all packets, in the background.
func (m *Migration) beginHold() {
	if m.hold == nil {
		return
	}
	begun := make(chan error, 1)
	m.begun = begun
	go func() { begun <- m.hold.Begin() }()
}

func (m *Migration) awaitBegun() error {
	if m.begun == nil {
		return nil
	}
	err := <-m.begun
	m.begun = nil
	return err
}

// mustBeSettled makes sure that all packets are held, and that the kernel has nothing
// to do any more for connections that the image does not have. All threads are stopped.
func (m *Migration) mustBeSettled() error {
	if err := m.awaitBegun(); err != nil {
		return fmt.Errorf("holding packets: %w", err)
	}
	listeners := resource.Listeners(m.image)
	if m.hold == nil && len(listeners) == 0 {
		return nil
	}
	u, err := resource.FindUnsettled(m.config.Addresses, listeners)
	if err != nil {
		return err
	}
	err = errors.Join(
		unsettledError("connections that the process has closed have not come to their end", u.Closed),
		unsettledError("connections wait for the process to accept them", u.Waiting))
	if err != nil {
		return fmt.Errorf("%w: %w", resource.ErrTryAgain, err)
	}
	return nil
}

// dumpConnections reads the sockets with connections. The tree does not run any more.
func (m *Migration) dumpConnections() error {
	m.plan.Connections = resource.Connections(m.image)
	if len(m.plan.Connections) == 0 {
		return nil
	}
	if err := m.save(); err != nil {
		return err
	}
	return resource.DumpConnections(m.image)
}

// resumeConnections takes the sockets out of repair mode, as long as the tree stands
// still: once it runs, that has been done, and they are the program's. From then on the
// host sends what they have to say.
func (m *Migration) resumeConnections() error {
	m.letOut()
	if !m.grouped || len(m.plan.Connections) == 0 {
		return nil
	}
	frozen, err := m.group.Frozen()
	if err != nil {
		return err
	}
	runs := func(p *process) bool { return p.stopped == nil }
	if frozen || !slices.ContainsFunc(m.processes, runs) { // they are held by ptrace, then
		m.lose("connections lost: ", resource.ResumeConnections(m.plan.Connections)...)
	}
	return nil
}

// letOut ends the dropping of what the tree sends, before it runs again.
func (m *Migration) letOut() {
	_ = m.awaitBegun() // was told before, or is of no interest
	if m.hold != nil {
		_ = m.hold.LetOut() // Deliver tries it again
	}
}

// deliverHeld delivers what was held to this host, on which the tree runs again, and
// holds no more. What is lost TCP sends again.
func (m *Migration) deliverHeld(ctx context.Context) {
	if m.hold != nil {
		_ = m.hold.Deliver(ctx)
	}
}

// endHold takes the hold away: in the background, as that takes a tenth of a second, or,
// if it is another agent's, at once.
func (m *Migration) endHold() error {
	if h := m.hold; h != nil {
		m.hold, m.plan.Hold = nil, ""
		m.host.inBackground(h.Close)
	}
	if m.plan.Hold == "" {
		return nil
	}
	return hold.Remove(m.plan.Hold)
}

// forwardHeld sends what was held, and what still comes, on to the host that has the
// addresses by now.
func (m *Migration) forwardHeld() {
	if h := m.hold; h != nil {
		m.hold, m.plan.Hold, m.forwarding = nil, "", h
		m.host.inBackground(func() error { return h.Forward(m.host.alive, lateTake) })
	}
}

// Sweep takes away what holds of an agent that died there are, but for those of plans
// that are to be recovered.
func (h *Host) Sweep(keep []Plan) error {
	names, err := hold.Names()
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		if !slices.ContainsFunc(keep, func(p Plan) bool { return p.Hold == name }) {
			errs = append(errs, hold.Remove(name))
		}
	}
	return errors.Join(errs...)
}
