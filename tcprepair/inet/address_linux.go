package inet

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Endpoint converts what the kernel tells. An address that was never set is
// the invalid one.
func Endpoint(sa unix.Sockaddr) (netip.AddrPort, error) {
	var a netip.AddrPort
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		a = netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		addr := netip.AddrFrom16(sa.Addr)
		if sa.ZoneId != 0 {
			// By its name, as it has another number on another host.
			zone := fmt.Sprint(sa.ZoneId)
			if device, err := net.InterfaceByIndex(int(sa.ZoneId)); err == nil {
				zone = device.Name
			}
			addr = addr.WithZone(zone)
		}
		a = netip.AddrPortFrom(addr, uint16(sa.Port))
	default:
		return a, fmt.Errorf("not an internet address: %T", sa)
	}
	return a, nil
}

// Sockaddr converts it back, for a socket of that family.
func Sockaddr(a netip.AddrPort, ipv6 bool) (unix.Sockaddr, error) {
	if !ipv6 {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}, nil
	}
	sa := &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
	if zone := a.Addr().Zone(); zone != "" {
		if device, err := net.InterfaceByName(zone); err == nil {
			sa.ZoneId = uint32(device.Index)
		} else if _, err := fmt.Sscan(zone, &sa.ZoneId); err != nil {
			return nil, fmt.Errorf("address %v: there is no device %s", a, zone)
		}
	}
	return sa, nil
}

// ParseSockaddr reads a struct sockaddr_in or sockaddr_in6; what is neither is no address.
func ParseSockaddr(b []byte) netip.AddrPort {
	switch {
	case len(b) >= unix.SizeofSockaddrInet6 && binary.NativeEndian.Uint16(b) == unix.AF_INET6:
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[8:24])).Unmap(), binary.BigEndian.Uint16(b[2:]))
	case len(b) >= unix.SizeofSockaddrInet4 && binary.NativeEndian.Uint16(b) == unix.AF_INET:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), binary.BigEndian.Uint16(b[2:]))
	}
	return netip.AddrPort{}
}
