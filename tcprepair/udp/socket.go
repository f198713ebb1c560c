package udp

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/tcprepair/inet"
)

// A Socket is a UDP socket without a host. It is plain data, of which most is zero.
type Socket struct {
	IPv6   bool           `json:",omitzero"` // of the address family AF_INET6; its addresses may be IPv4 ones all the same
	Local  netip.AddrPort `json:",omitzero"` // not valid: not bound
	Remote netip.AddrPort `json:",omitzero"` // not valid: not connected

	UID, GID uint32 `json:",omitzero"` // of who made it, or was given it: sockets of one user may share a port (SO_REUSEPORT)

	Shutdown inet.Shutdown `json:",omitzero"`

	Buffers inet.Buffers  `json:",omitzero"`
	Options []inet.Option `json:",omitzero"`
	Filter  inet.Filter   `json:",omitzero"`

	Devices     inet.Devices      `json:",omitzero"` // through which it sends
	Memberships []inet.Membership `json:",omitzero"`

	Queue []Datagram `json:",omitzero"`
}

// A Datagram has come and was not read yet. IPv4 addresses are in their own notation.
type Datagram struct {
	From, To netip.AddrPort
	Hops     uint8 // TTL, or hop limit
	Class    uint8 // TOS, or traffic class
	Data     []byte
}

// ErrInvalid says that a Socket cannot have come from Dump.
var ErrInvalid = errors.New("not a socket's state")

// ErrUnsupported says that a socket cannot be taken apart, with the reason.
var ErrUnsupported = inet.ErrUnsupported

// maxData is what an IP packet has room for.
const maxData = 1<<16 - 1 - headerBytes

// Validate checks a Socket from elsewhere before anything is made of it.
func (s *Socket) Validate() error {
	for _, a := range []netip.AddrPort{s.Local, s.Remote} {
		if a.Addr().IsValid() && a.Addr().Is4() == s.IPv6 {
			return fmt.Errorf("%w: address %v", ErrInvalid, a)
		}
	}
	if s.Remote.IsValid() && !s.Local.IsValid() {
		return fmt.Errorf("%w: connected to %v from nowhere", ErrInvalid, s.Remote)
	}
	for i := range s.Options {
		if err := inet.UDP.Validate(&s.Options[i]); err != nil {
			return fmt.Errorf("%w: %w", ErrInvalid, err)
		}
	}
	if len(s.Filter) > unix.BPF_MAXINSNS {
		return fmt.Errorf("%w: a filter of %d instructions", ErrInvalid, len(s.Filter))
	}
	for i := range s.Memberships {
		if err := s.Memberships[i].Validate(s.IPv6); err != nil {
			return fmt.Errorf("%w: %w", ErrInvalid, err)
		}
	}
	for i := range s.Queue {
		if err := s.Queue[i].Validate(); err != nil {
			return err
		}
	}
	return nil
}

// Validate checks a Datagram from elsewhere.
func (d *Datagram) Validate() error {
	from, to := d.From.Addr(), d.To.Addr()
	if !from.IsValid() || !to.IsValid() || from.Is4() != to.Is4() || from.Is4In6() || to.Is4In6() || len(d.Data) > maxData {
		return fmt.Errorf("%w: a datagram of %d bytes from %v to %v", ErrInvalid, len(d.Data), d.From, d.To)
	}
	return nil
}
