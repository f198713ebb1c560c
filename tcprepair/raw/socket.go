package raw

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/tcprepair/inet"
)

// A Socket is a raw socket, or one of ping, without a host. It is plain data, of which most
// is zero.
type Socket struct {
	IPv6     bool `json:",omitzero"` // of the address family AF_INET6
	Ping     bool `json:",omitzero"` // SOCK_DGRAM of ICMP or ICMPv6 (icmp(7)), and not SOCK_RAW
	Protocol int  // IPPROTO_ICMP, ...

	// Addresses. Not valid: not bound, not connected. The port of Local is the identifier of
	// ping, and 0 of a raw socket; that of Remote means nothing.
	Local  netip.AddrPort `json:",omitzero"`
	Remote netip.AddrPort `json:",omitzero"`

	UID, GID uint32 `json:",omitzero"`

	Shutdown inet.Shutdown `json:",omitzero"`
	Buffers  inet.Buffers  `json:",omitzero"`
	Options  []inet.Option `json:",omitzero"`
	// Headers are the options of IP and the extension headers that all that it sends has
	// (IP_OPTIONS, IPV6_RTHDR, ...).
	Headers []inet.Option `json:",omitzero"`
	Filter  inet.Filter   `json:",omitzero"`

	Devices     inet.Devices      `json:",omitzero"` // through which it sends
	Memberships []inet.Membership `json:",omitzero"`
}

// ErrInvalid says that a Socket cannot have come from Look.
var ErrInvalid = errors.New("not a socket's state")

// String names its kind.
func (s *Socket) String() string {
	if s.Ping {
		return fmt.Sprintf("a ping socket (protocol %d)", s.Protocol)
	}
	return fmt.Sprintf("a raw socket of protocol %d", s.Protocol)
}

// Validate checks a Socket from elsewhere before anything is made of it.
func (s *Socket) Validate() error {
	icmp := map[bool]int{false: unix.IPPROTO_ICMP, true: unix.IPPROTO_ICMPV6}[s.IPv6]
	if s.Protocol < 0 || s.Protocol > maxProtocol || s.Ping && s.Protocol != icmp {
		return fmt.Errorf("%w: protocol %d", ErrInvalid, s.Protocol)
	}
	for _, a := range []netip.AddrPort{s.Local, s.Remote} {
		if a.Addr().IsValid() && a.Addr().Is4() == s.IPv6 {
			return fmt.Errorf("%w: address %v", ErrInvalid, a)
		}
	}
	if s.Remote.IsValid() && !s.Local.IsValid() {
		return fmt.Errorf("%w: connected to %v from nowhere", ErrInvalid, s.Remote)
	}
	for i := range s.Options {
		if err := inet.Raw.Validate(&s.Options[i]); err != nil {
			return fmt.Errorf("%w: %w", ErrInvalid, err)
		}
	}
	for _, o := range s.Headers {
		if h := headersOf(s.IPv6); o.Level != h.level || !h.has(o.Name) || len(o.Value) > maxHeaders {
			return fmt.Errorf("%w: header option %d of level %d, %d bytes", ErrInvalid, o.Name, o.Level, len(o.Value))
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
	return nil
}

// maxProtocol is IPPROTO_MAX - 1, without those that only TCP's relatives have
// (include/uapi/linux/in.h).
const maxProtocol = 255
