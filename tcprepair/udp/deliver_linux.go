package udp

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/tcprepair"
)

// Deliver gives datagrams to the sockets of this host that they are for, in order, by way
// of its loopback device, each in its sender's name. Their destinations are addresses of
// the host by now. It tries all of them, and returns what has failed. The caller needs
// CAP_NET_RAW.
func Deliver(all []Datagram) error {
	fds := map[bool]int{}
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	var errs []error
	for i := range all {
		d := &all[i]
		err := d.Validate()
		if err == nil {
			err = d.deliver(fds)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("delivering a datagram from %v to %v: %w", d.From, d.To, err))
		}
	}
	return errors.Join(errs...)
}

// deliver sends one, by a raw socket for each family, which are opened when they are needed.
func (d *Datagram) deliver(fds map[bool]int) error {
	ipv6 := d.To.Addr().Is6()
	fd, ok := fds[ipv6]
	if !ok {
		domain := unix.AF_INET
		if ipv6 {
			domain = unix.AF_INET6
		}
		var err error
		if fd, err = unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW); err != nil {
			return err
		}
		fds[ipv6] = fd
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PRIORITY, tcprepair.Priority); err != nil {
			return err
		}
	}
	if ipv6 {
		return unix.Sendto(fd, d.packet(), 0, &unix.SockaddrInet6{Addr: d.To.Addr().As16()})
	}
	return unix.Sendto(fd, d.packet(), 0, &unix.SockaddrInet4{Addr: d.To.Addr().As4()})
}
