package raw

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/tcprepair/inet"
)

// Look reads all of a socket but its queue, and disturbs nothing. fd may be any descriptor of
// the socket, which is in the network namespace of the caller's thread. What cannot be moved
// is inet.ErrUnsupported.
func Look(fd int) (*Socket, error) {
	i, err := inet.Identify(fd)
	if err != nil {
		return nil, err
	}
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return nil, err
	}
	s := &Socket{IPv6: i.IPv6, Ping: kind == unix.SOCK_DGRAM, Protocol: i.Protocol, UID: i.UID, GID: i.GID}
	if err := s.Validate(); err != nil {
		return nil, fmt.Errorf("%v %w", s, inet.ErrUnsupported)
	}
	routes, err := s.mayRoute()
	if err != nil {
		return nil, err
	}
	if routes {
		return nil, fmt.Errorf("%v on a host on which a program routes multicast (MRT_INIT), which may be its, %w", s, inet.ErrUnsupported)
	}
	if err := s.readAddresses(fd); err != nil {
		return nil, err
	}
	if s.Options, err = inet.Raw.Read(fd, s.IPv6); err != nil {
		return nil, err
	}
	if s.Headers, err = readHeaders(fd, s.IPv6); err != nil {
		return nil, err
	}
	if s.Buffers, err = inet.ReadBuffers(fd); err != nil {
		return nil, err
	}
	if s.Filter, err = inet.ReadFilter(fd, s.String()); err != nil {
		return nil, err
	}
	if s.Devices, err = inet.ReadDevices(fd, s.IPv6); err != nil {
		return nil, err
	}
	if s.Memberships, err = inet.ReadMemberships(fd, s.IPv6); err != nil {
		return nil, err
	}
	s.Shutdown, err = inet.ReadShutdown(fd)
	return s, err
}

// mayRoute reports a socket of the protocol by which programs have the kernel route
// multicast, while one does (ip_mroute_setsockopt, net/ipv4/ipmr.c): the kernel does not
// tell which socket that is.
func (s *Socket) mayRoute() (bool, error) {
	family, protocol := "ipv4", unix.IPPROTO_IGMP
	if s.IPv6 {
		family, protocol = "ipv6", unix.IPPROTO_ICMPV6
	}
	if s.Ping || s.Protocol != protocol {
		return false, nil
	}
	content, err := os.ReadFile("/proc/sys/net/" + family + "/conf/all/mc_forwarding")
	if errors.Is(err, os.ErrNotExist) { // it cannot
		return false, nil
	}
	return strings.TrimSpace(string(content)) != "0", err
}

func (s *Socket) readAddresses(fd int) error {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return err
	}
	if s.Local, err = inet.Endpoint(sa); err != nil {
		return err
	}
	if !s.Ping { // its protocol stands there
		s.Local = netip.AddrPortFrom(s.Local.Addr(), 0)
	}
	if s.Local.Port() == 0 && s.Local.Addr().IsUnspecified() {
		s.Local = netip.AddrPort{}
	}
	sa, err = unix.Getpeername(fd)
	if errors.Is(err, unix.ENOTCONN) {
		return s.readListed(fd)
	}
	if err == nil {
		s.Remote, err = inet.Endpoint(sa)
	}
	return err
}

// readListed looks whether it is connected all the same.
func (s *Socket) readListed(fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	all, err := List()
	if err != nil {
		return err
	}
	for _, l := range all {
		if l.Inode == st.Ino && l.Connected {
			s.Remote = netip.AddrPortFrom(l.Remote, 0)
		}
	}
	return nil
}
