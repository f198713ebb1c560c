package inet

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// ErrUnsupported says that a socket cannot be taken apart, with the reason.
var ErrUnsupported = errors.New("cannot be moved")

// An Identity is what a socket is from its making on, and whose.
type Identity struct {
	IPv6     bool // of the address family AF_INET6
	Protocol int
	UID, GID uint32
}

// Identify reads it from a socket of an internet family.
func Identify(fd int) (Identity, error) {
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return Identity{}, err
	}
	protocol, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err != nil {
		return Identity{}, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return Identity{}, err
	}
	return Identity{IPv6: domain == unix.AF_INET6, Protocol: protocol, UID: st.Uid, GID: st.Gid}, nil
}

// Open makes such a socket, of a type of socket(2). Its descriptor is non-blocking and closed
// by exec. On an error nothing is left.
func Open(typ int, i Identity) (fd int, err error) {
	domain := unix.AF_INET
	if i.IPv6 {
		domain = unix.AF_INET6
	}
	if fd, err = unix.Socket(domain, typ|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, i.Protocol); err != nil {
		return -1, err
	}
	if int(i.UID) == unix.Geteuid() && int(i.GID) == unix.Getegid() {
		return fd, nil
	}
	if err := unix.Fchown(fd, int(i.UID), int(i.GID)); err != nil {
		return -1, errors.Join(fmt.Errorf("giving the socket to user %d: %w", i.UID, err), unix.Close(fd))
	}
	return fd, nil
}

// Bind gives a socket its local address; early, the host need not have that.
func Bind(fd int, local netip.AddrPort, ipv6, early bool) error {
	sa, err := Sockaddr(local, ipv6)
	if err != nil {
		return err
	}
	return Abroad(fd, ipv6, early, func() error {
		if err := unix.Bind(fd, sa); err != nil {
			return fmt.Errorf("binding to %v: %w", local, err)
		}
		return nil
	})
}

// Connect gives a socket of datagrams its peer, if that is valid; early as for Bind. Nothing
// is sent.
func Connect(fd int, remote netip.AddrPort, ipv6, early bool) error {
	if !remote.IsValid() {
		return nil
	}
	sa, err := Sockaddr(remote, ipv6)
	if err != nil {
		return err
	}
	if err := Abroad(fd, ipv6, early, func() error { return unix.Connect(fd, sa) }); err != nil {
		return fmt.Errorf("connecting to %v: %w", remote, err)
	}
	return nil
}

// Abroad calls f; early, while the socket may be bound to an address that the host does not
// have, and connected from it (IP_TRANSPARENT, ip(7)), for which the caller needs CAP_NET_ADMIN.
func Abroad(fd int, ipv6, early bool, f func() error) error {
	if !early {
		return f()
	}
	level, name := transparency(ipv6)
	was, err := unix.GetsockoptInt(fd, level, name)
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		was = 0 // of MPTCP it cannot be asked on older kernels, and it is new
	case err != nil:
		return fmt.Errorf("reading IP_TRANSPARENT: %w", err)
	}
	if err := SetTransparent(fd, ipv6, 1); err != nil {
		return err
	}
	if err := f(); err != nil {
		return err
	}
	return SetTransparent(fd, ipv6, was)
}

// SetTransparent lets a socket go on sending from an address that the host does not have, or
// ends that (ip(7), IP_TRANSPARENT: 1 or 0). The caller needs CAP_NET_ADMIN.
func SetTransparent(fd int, ipv6 bool, value int) error {
	level, name := transparency(ipv6)
	if err := unix.SetsockoptInt(fd, level, name, value); err != nil {
		return fmt.Errorf("setting IP_TRANSPARENT: %w", err)
	}
	return nil
}

// transparency is one switch under two names.
func transparency(ipv6 bool) (level, name int) {
	if ipv6 {
		return unix.SOL_IPV6, unix.IPV6_TRANSPARENT
	}
	return unix.SOL_IP, unix.IP_TRANSPARENT
}
