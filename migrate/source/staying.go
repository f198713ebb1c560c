package source

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/pagurus-project/pagurus/migrate/resource"
	"github.com/pagurus-project/pagurus/tcprepair/forward"
	"github.com/pagurus-project/pagurus/tcprepair/hold"
)

// Connections at addresses that do not go along, most of all the host's own, leave their
// address behind:
//
//	prepareStaying       a place to hold their packets, if there are any
//	beginStaying         the image is taken and tells which they are: they are held
//	planForward          the destination is prepared and has said where it is
//	├─ deliverHeld       it runs on here
//	└─ forwardStaying    it runs there: packets are passed on, held ones first, from now on
//
// The connections themselves are read and resumed as all others.

// prepareStaying makes the place, unless there is one or nothing to hold.
func (m *Migration) prepareStaying() error {
	if m.staying != nil {
		return nil
	}
	connects, err := resource.Connects(m.pids(), m.config.Addresses)
	if err != nil || !connects {
		return errors.Join(m.checkTree(), err)
	}
	c := hold.Config{Name: hold.NameOf(fmt.Sprint(m.config.Migration, " ", m.config.Epoch, " staying")), Peers: true}
	if c.Devices, err = resource.Devices(); err != nil {
		return err
	}
	m.plan.StayingHold = c.Name
	if err := m.save(); err != nil {
		return err
	}
	m.staying, err = hold.Prepare(c)
	return err
}

// beginStaying holds their packets. All threads are stopped.
func (m *Migration) beginStaying() error {
	flows := resource.StayingFlows(m.image)
	if len(flows) == 0 {
		return nil
	}
	if m.staying == nil {
		return fmt.Errorf("%w: the process has just connected from an address that does not go along", resource.ErrTryAgain)
	}
	if err := m.staying.BeginFlows(flows); err != nil {
		return fmt.Errorf("holding packets: %w", err)
	}
	return nil
}

// planForward notes how to pass their packets on to the destination, which has these addresses.
func (m *Migration) planForward(there []netip.Addr) error {
	flows := resource.FromElsewhere(resource.StayingFlows(m.image))
	if len(flows) == 0 {
		return nil
	}
	to, err := resource.ReachFor(flows, there)
	if err != nil {
		return fmt.Errorf("connections at addresses that do not go along cannot be passed on to the destination: %w", err)
	}
	m.plan.Forward = &forward.Forward{Name: m.config.Migration, Flows: flows, To: to}
	return m.save()
}

// forwardStaying passes them on, what was held first. It may be repeated, and is to be until it
// does not fail. The hold stays, as the sockets here still try to send something again: that is
// for nobody.
func (m *Migration) forwardStaying(ctx context.Context) error {
	if m.plan.Forward == nil || m.passing {
		return nil
	}
	if !m.plan.Passing {
		m.plan.Passing = true
		if err := m.save(); err != nil {
			return err
		}
	}
	f, h := *m.plan.Forward, m.staying
	if err := resource.DismissGuests(f.Flows); err != nil {
		return err
	}
	var err error
	if h == nil {
		err = m.passOn(f)
	} else {
		err = m.passHeldOn(ctx, f, h)
	}
	if !m.passing {
		return fmt.Errorf("passing connections on: %w", err)
	}
	return nil // what was held and is lost is sent again
}

func (m *Migration) passHeldOn(ctx context.Context, f forward.Forward, h *hold.Hold) error {
	link, err := net.InterfaceByName(f.To.Device)
	if err != nil {
		return err
	}
	f.Devices = []string{h.Device()}
	if err := forward.Set(f); err != nil {
		return err
	}
	return h.Reinject(ctx, link.MTU, func() error { return m.passOn(f) })
}

// passOn takes what comes from now on.
func (m *Migration) passOn(f forward.Forward) (err error) {
	if f.Devices, err = resource.Devices(); err == nil {
		err = forward.Set(f)
	}
	m.passing = err == nil
	return err
}

// unforward takes that back, where a decision was turned round.
func (m *Migration) unforward() {
	if !m.plan.Passing {
		return
	}
	err := errors.Join(forward.Remove(m.plan.Forward.Name), resource.AdmitGuests(m.config.Migration, m.plan.Forward.Flows))
	if err != nil {
		m.lose("connections are still passed on: ", err)
	}
}

// endStaying takes the hold away, in the background.
func (m *Migration) endStaying() {
	if h := m.staying; h != nil {
		m.staying, m.plan.StayingHold = nil, ""
		m.host.inBackground(func() error { return m.host.persistently(h.Close) })
	}
}
