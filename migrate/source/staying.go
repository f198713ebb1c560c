package source

import (
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
	if c.Devices, err = Devices(); err != nil {
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
	to, err := forward.Reach(there)
	if err != nil {
		return fmt.Errorf("connections at addresses that do not go along cannot be passed on to the destination: %w", err)
	}
	f := &forward.Forward{Name: m.config.Migration, Flows: flows, To: to}
	if f.Devices, err = Devices(); err != nil {
		return err
	}
	m.plan.Forward = f
	return m.save()
}

// forwardStaying passes them on, what was held first. It may be repeated. The hold stays, as the
// sockets here still try to send something again: that is for nobody.
func (m *Migration) forwardStaying() error {
	if m.plan.Forward == nil || m.passing != nil {
		return nil
	}
	f, h := *m.plan.Forward, m.staying
	if h == nil {
		return errors.Join(resource.DismissGuests(f.Flows), pass(f))
	}
	link, err := net.InterfaceByName(f.To.Device)
	if err != nil {
		return fmt.Errorf("looking for the way to the destination: %w", err)
	}
	if err := resource.DismissGuests(f.Flows); err != nil {
		return err
	}
	held := f
	held.Devices = []string{h.Device()}
	if err := pass(held); err != nil {
		return err
	}
	passing := make(chan struct{})
	m.passing = passing
	m.host.inBackground(func() error {
		defer close(passing)
		return h.Reinject(m.host.alive, link.MTU, func() error { return m.host.persistently(func() error { return pass(f) }) })
	})
	return nil
}

func pass(f forward.Forward) error {
	if err := forward.Set(f); err != nil {
		return fmt.Errorf("passing connections on: %w", err)
	}
	return nil
}

// unforward takes that back, where a decision was turned round.
func (m *Migration) unforward() {
	if m.plan.Forward == nil {
		return
	}
	err := errors.Join(forward.Remove(m.plan.Forward.Name), resource.AdmitGuests(m.config.Migration, m.plan.Forward.Flows))
	if err != nil {
		m.lose("connections are still passed on: ", err)
	}
}

// endStaying takes the hold away, in the background.
func (m *Migration) endStaying() {
	h, passing := m.staying, m.passing
	if h == nil {
		return
	}
	m.staying, m.plan.StayingHold = nil, ""
	m.host.inBackground(func() error {
		if passing != nil {
			<-passing
		}
		return m.host.persistently(h.Close)
	})
}
