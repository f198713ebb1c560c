package inet

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Abroad calls f while a socket may be bound to an address that the host does not have,
// and connected from it (IP_TRANSPARENT, ip(7)). The caller needs CAP_NET_ADMIN.
func Abroad(fd int, ipv6 bool, f func() error) error {
	level, name := unix.SOL_IP, unix.IP_TRANSPARENT // one switch under two names
	if ipv6 {
		level, name = unix.SOL_IPV6, unix.IPV6_TRANSPARENT
	}
	was, err := unix.GetsockoptInt(fd, level, name)
	if errors.Is(err, unix.EOPNOTSUPP) {
		was, err = 0, nil // of MPTCP it cannot be asked on older kernels, and it is new
	}
	if err == nil {
		err = unix.SetsockoptInt(fd, level, name, 1)
	}
	if err != nil {
		return fmt.Errorf("setting IP_TRANSPARENT: %w", err)
	}
	if err := f(); err != nil {
		return err
	}
	if err := unix.SetsockoptInt(fd, level, name, was); err != nil {
		return fmt.Errorf("setting IP_TRANSPARENT: %w", err)
	}
	return nil
}
