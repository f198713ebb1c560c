package hold

import (
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/tcprepair"
)

// A sender delivers packets on this host, by way of its loopback device, or sends them
// to the host that has their address.
type sender struct{ fd4, fd6 int }

func newSender() (s sender, err error) {
	s = sender{-1, -1}
	if s.fd4, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW); err == nil {
		s.fd6, err = unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	}
	if errors.Is(err, unix.EAFNOSUPPORT) {
		s.fd6, err = -1, nil
	}
	for _, fd := range []int{s.fd4, s.fd6} {
		if err == nil && fd >= 0 {
			err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PRIORITY, tcprepair.Priority)
		}
	}
	if err != nil {
		s.close()
		return s, fmt.Errorf("opening a raw socket: %w", err)
	}
	return s, nil
}

func (s sender) close() {
	for _, fd := range []int{s.fd4, s.fd6} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

// Datagrams that do not fit into a socket's buffer are lost, and what was held for a while
// comes all at once: so no more than these are sent in a row, with a pause after them. A buffer
// of the usual size (net.core.rmem_default) has room for some 250 small ones.
const (
	burst      = 16
	burstBytes = 32 << 10
	burstPause = time.Millisecond
)

// deliver sends what take returns, again and again until there is nothing, or until the given
// time, whatever becomes of one packet.
func (s sender) deliver(take func() []packet, until time.Time) error {
	var errs []error
	var datagrams []packet
	for taking := true; ; {
		var packets []packet
		if taking {
			packets = take()
			taking = time.Now().Before(until)
		}
		for _, p := range packets { // segments do not wait for datagrams
			if p.protocol == protocolUDP {
				datagrams = append(datagrams, p)
			} else {
				errs = append(errs, s.deliverOne(p))
			}
		}
		for n, size := 0, 0; len(datagrams) > 0 && n < burst && size < burstBytes; n++ {
			size += len(datagrams[0].bytes)
			errs = append(errs, s.deliverOne(datagrams[0]))
			datagrams = datagrams[1:]
		}
		switch {
		case len(datagrams) > 0:
			<-time.After(burstPause)
		case len(packets) == 0:
			return errors.Join(errs...)
		}
	}
}

func (s sender) deliverOne(p packet) error {
	err := s.send(p)
	if errors.Is(err, unix.EMSGSIZE) && p.protocol == protocolTCP && p.whole() {
		err = s.sendCut(p)
	}
	if err != nil {
		return fmt.Errorf("delivering a packet of %d bytes: %w", len(p.bytes), err)
	}
	return nil
}

func (s sender) send(p packet) error {
	if p.isIPv6() {
		return unix.Sendto(s.fd6, p.bytes, 0, &unix.SockaddrInet6{Addr: p.destination().As16()})
	}
	return unix.Sendto(s.fd4, p.bytes, 0, &unix.SockaddrInet4{Addr: p.destination().As4()})
}

// sendCut sends a TCP segment in pieces that the way allows: what comes in is put together
// by network cards and the kernel (GRO), up to 64 KiB.
func (s sender) sendCut(p packet) error {
	if p.sum() != 0 {
		return nil // damaged: the pieces would not be
	}
	mtu, err := mtuTo(p)
	if err != nil {
		return err
	}
	for _, piece := range p.segments(mtu) {
		if err := s.send(piece); err != nil {
			return err
		}
	}
	return nil
}

// mtuTo is the MTU of the device through which a packet goes.
func mtuTo(p packet) (int, error) {
	routes, err := netlink.RouteGet(p.destination().AsSlice())
	if err != nil || len(routes) == 0 {
		return 0, fmt.Errorf("looking for the way: %w", err)
	}
	if routes[0].MTU > 0 {
		return routes[0].MTU, nil
	}
	link, err := netlink.LinkByIndex(routes[0].LinkIndex)
	if err != nil {
		return 0, fmt.Errorf("looking for the way: %w", err)
	}
	return link.Attrs().MTU, nil
}
