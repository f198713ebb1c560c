package tcprepair

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Priority is that of packets (socket(7), SO_PRIORITY) which are sent to the host itself
// in a peer's name. Who holds packets back lets these pass.
const Priority = 0x70670000

// inject sends an acknowledgement, with more flags, to the socket in the peer's
// name. The way is the loopback device.
func (s *Socket) inject(flags byte, seq, ack uint32) error {
	g := segment{from: s.Remote, to: s.Local, seq: seq, ack: ack, flags: flagACK | flags}
	g.window = uint16(min(s.Window.SendWindow>>s.Negotiated.SendScale, 1<<16-1))
	return send(g.packet(), &g)
}

// send gives a packet to the host's own network stack.
func send(packet []byte, g *segment) (err error) {
	host := g.to.Addr().Unmap()
	domain := unix.AF_INET
	var to unix.Sockaddr
	if host.Is4() {
		to = &unix.SockaddrInet4{Addr: host.As4()}
	} else {
		domain, to = unix.AF_INET6, &unix.SockaddrInet6{Addr: host.As16()}
	}
	fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return fmt.Errorf("opening a raw socket: %w", err)
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PRIORITY, Priority); err != nil {
		return fmt.Errorf("setting SO_PRIORITY: %w", err)
	}
	if err := unix.Sendto(fd, packet, 0, to); err != nil {
		return fmt.Errorf("sending a segment from %v to %v: %w", g.from, g.to, err)
	}
	return nil
}
