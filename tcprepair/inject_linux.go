package tcprepair

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Priority is that of packets (socket(7), SO_PRIORITY) which are sent to the host itself
// in a peer's name. Who holds packets back lets these pass.
const Priority = 0x70670000

// Mute is that of packets which are not to leave the host.
const Mute = Priority + 1

// inject sends an acknowledgement, with more flags, to the socket in the peer's
// name. The way is the loopback device.
func (s *Socket) inject(flags byte, seq, ack uint32) error {
	return s.say(segment{seq: seq, ack: ack, flags: flags})
}

// Inject sends data of the receive queue, the peer's FIN behind it, or, without both, an
// acknowledgement to this host's own socket in the peer's name, by the loopback device,
// whose MTU it must fit. seq is the sequence number of the first byte.
func (s *Socket) Inject(seq uint32, data []byte, fin bool) error {
	g := segment{seq: seq, ack: s.Send.Seq, data: data}
	if fin {
		g.flags = flagFIN
	}
	return s.say(g)
}

// say sends a segment of the connection in the peer's name.
func (s *Socket) say(g segment) error {
	g.from, g.to = s.Remote, s.Local
	g.flags |= flagACK
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
