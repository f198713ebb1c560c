package hold

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/tcprepair"
)

const (
	header4Bytes = 20
	header6Bytes = 40
	tcpBytes     = 20
	fragment     = 0x3fff // "more fragments" and the offset (RFC 791, 3.1)
)

// isTCP reports an IP packet of TCP. Extension headers of IPv6 are not looked behind.
func isTCP(captured []byte) bool {
	return len(captured) >= header4Bytes && (captured[0]>>4 == 4 && captured[9] == unix.IPPROTO_TCP ||
		captured[0]>>4 == 6 && captured[6] == unix.IPPROTO_TCP)
}

// segment is the IP packet at the beginning of what was captured, if it is a
// whole one with a TCP segment in it.
func segment(captured []byte) ([]byte, bool) {
	if !isTCP(captured) {
		return nil, false
	}
	length := header6Bytes + int(binary.BigEndian.Uint16(captured[4:]))
	if captured[0]>>4 == 4 {
		if binary.BigEndian.Uint16(captured[6:])&fragment != 0 {
			return nil, false
		}
		length = int(binary.BigEndian.Uint16(captured[2:]))
	}
	if length > len(captured) {
		return nil, false
	}
	packet := captured[:length]
	return packet, tcpAt(packet) >= header4Bytes && length >= tcpAt(packet)+tcpBytes
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
		err := s.send(p)
		if errors.Is(err, unix.EMSGSIZE) {
			err = s.sendCut(p)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("delivering a packet of %d bytes: %w", len(p), err))
		}
	}
	return errors.Join(errs...)
}

func (s sender) send(p []byte) error {
	tcprepair.Seal(p, tcpAt(p))
	if p[0]>>4 == 4 {
		return unix.Sendto(s.fd4, p, 0, &unix.SockaddrInet4{Addr: [4]byte(p[16:20])})
	}
	return unix.Sendto(s.fd6, p, 0, &unix.SockaddrInet6{Addr: [16]byte(p[24:40])})
}

// sendCut sends a packet in pieces that the way allows: what comes in is put together by
// network cards and the kernel (GRO), up to 64 KiB.
func (s sender) sendCut(p []byte) error {
	mtu, err := mtuTo(p)
	if err != nil {
		return err
	}
	for _, piece := range cut(p, mtu) {
		if err := s.send(piece); err != nil {
			return err
		}
	}
	return nil
}

// mtuTo is the MTU of the device through which a packet goes.
func mtuTo(p []byte) (int, error) {
	to := p[16:20]
	if p[0]>>4 == 6 {
		to = p[24:40]
	}
	routes, err := netlink.RouteGet(to)
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

// cut makes segments of one that is too long, each with the headers of the whole.
func cut(p []byte, mtu int) [][]byte {
	const fin, psh = 1 << 0, 1 << 3 // of the last one alone
	at := tcpAt(p)
	data := at + int(p[at+12]>>4)*4
	room := mtu - data
	if room <= 0 || data > len(p) {
		return [][]byte{p}
	}
	var pieces [][]byte
	for from := data; from < len(p); from += room {
		to := min(from+room, len(p))
		piece := append(bytes.Clone(p[:data]), p[from:to]...)
		if piece[0]>>4 == 4 {
			binary.BigEndian.PutUint16(piece[2:], uint16(len(piece))) // the kernel sums up the header
		} else {
			binary.BigEndian.PutUint16(piece[4:], uint16(len(piece)-header6Bytes))
		}
		binary.BigEndian.PutUint32(piece[at+4:], binary.BigEndian.Uint32(p[at+4:])+uint32(from-data))
		if to < len(p) {
			piece[at+13] &^= fin | psh
		}
		pieces = append(pieces, piece)
	}
	return pieces
}
