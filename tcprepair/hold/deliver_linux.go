package hold

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/tcprepair"
)

const (
	header4Bytes = 20
	header6Bytes = 40
	tcpBytes     = 20
)

// segment is the IP packet at the beginning of what was captured, if it is a
// whole one with a TCP segment in it. Extension headers of IPv6 are not looked
// behind.
func segment(captured []byte) ([]byte, bool) {
	if len(captured) < header4Bytes {
		return nil, false
	}
	length := 0
	switch {
	case captured[0]>>4 == 4 && captured[9] == unix.IPPROTO_TCP:
		length = int(binary.BigEndian.Uint16(captured[2:]))
	case captured[0]>>4 == 6 && captured[6] == unix.IPPROTO_TCP:
		length = header6Bytes + int(binary.BigEndian.Uint16(captured[4:]))
	}
	if length > len(captured) {
		return nil, false
	}
	packet := captured[:length]
	return packet, length > 0 && tcpAt(packet) >= header4Bytes && length >= tcpAt(packet)+tcpBytes
}

// tcpAt is where the TCP header of a packet begins.
func tcpAt(packet []byte) int {
	if packet[0]>>4 == 6 {
		return header6Bytes
	}
	return int(packet[0]&0xf) * 4
}

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

// deliver sends all packets, whatever becomes of one of them.
func (s sender) deliver(packets [][]byte) error {
	var errs []error
	for _, p := range packets {
		tcprepair.Seal(p, tcpAt(p))
		var err error
		if p[0]>>4 == 4 {
			err = unix.Sendto(s.fd4, p, 0, &unix.SockaddrInet4{Addr: [4]byte(p[16:20])})
		} else {
			err = unix.Sendto(s.fd6, p, 0, &unix.SockaddrInet6{Addr: [16]byte(p[24:40])})
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("delivering a packet of %d bytes: %w", len(p), err))
		}
	}
	return errors.Join(errs...)
}
