package udp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/tcprepair/inet"
)

// Look reads all of a socket but its queue, and disturbs nothing. fd may be any
// descriptor of the socket, which is in the network namespace of the caller's thread.
func Look(fd int) (*Socket, error) {
	i, err := inet.Identify(fd)
	if err != nil {
		return nil, err
	}
	s := &Socket{IPv6: i.IPv6, UID: i.UID, GID: i.GID}
	if err := s.readAddresses(fd); err != nil {
		return nil, err
	}
	if kind, err := unix.GetsockoptInt(fd, unix.SOL_UDP, unix.UDP_ENCAP); err == nil && kind != 0 {
		return nil, fmt.Errorf("a UDP socket that the kernel takes packets out of (UDP_ENCAP) %w", ErrUnsupported)
	}
	if s.Options, err = inet.UDP.Read(fd, s.IPv6); err != nil {
		return nil, err
	}
	if s.Buffers, err = inet.ReadBuffers(fd); err != nil {
		return nil, err
	}
	if s.Filter, err = inet.ReadFilter(fd, "a UDP socket"); err != nil {
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

func (s *Socket) readAddresses(fd int) error {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return err
	}
	if s.Local, err = inet.Endpoint(sa); err != nil {
		return err
	}
	if s.Local.Port() == 0 && s.Local.Addr().IsUnspecified() {
		s.Local = netip.AddrPort{}
	}
	sa, err = unix.Getpeername(fd)
	if errors.Is(err, unix.ENOTCONN) {
		return nil
	}
	if err == nil {
		s.Remote, err = inet.Endpoint(sa)
	}
	return err
}

// An extra is something that the kernel tells of a datagram when it is asked to.
type extra struct{ level, ask, told int }

// extras are the destination, the hops and the class, of both families.
var extras = []extra{
	{unix.SOL_IP, unix.IP_RECVORIGDSTADDR, unix.IP_ORIGDSTADDR},
	{unix.SOL_IP, unix.IP_RECVTTL, unix.IP_TTL},
	{unix.SOL_IP, unix.IP_RECVTOS, unix.IP_TOS},
	{unix.SOL_IPV6, unix.IPV6_RECVORIGDSTADDR, unix.IPV6_ORIGDSTADDR},
	{unix.SOL_IPV6, unix.IPV6_RECVHOPLIMIT, unix.IPV6_HOPLIMIT},
	{unix.SOL_IPV6, unix.IPV6_RECVTCLASS, unix.IPV6_TCLASS},
}

// Changes reports an option that Queue gives another value for a moment.
func Changes(o *inet.Option) bool {
	return o.Level == unix.SOL_SOCKET && o.Name == unix.SO_PEEK_OFF ||
		slices.ContainsFunc(extras, func(e extra) bool { return e.level == o.Level && e.ask == o.Name })
}

// Queue reads the datagrams that have come, and leaves them there. The program does not
// run meanwhile: for a moment the socket tells more than it has asked for. Errors that
// wait to be told are told here, and to nobody else. Of empty datagrams only the first
// look tells (__skb_try_recv_from_queue, net/core/datagram.c).
func Queue(fd int) (queue []Datagram, err error) {
	asked := map[extra]uint32{}
	var peekedAt int
	if peekedAt, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF); err != nil {
		return nil, fmt.Errorf("reading SO_PEEK_OFF: %w", err)
	}
	defer func() {
		for e, was := range asked {
			err = errors.Join(err, inet.SetInt(fd, e.level, e.ask, was))
		}
		err = errors.Join(err, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, peekedAt))
	}()
	for _, e := range extras {
		was, err := inet.GetInt(fd, e.level, e.ask)
		if inet.Unknown(err) { // of IPv6 in a socket of IPv4
			continue
		}
		if err == nil {
			err = inet.SetInt(fd, e.level, e.ask, 1)
		}
		if err != nil {
			return nil, fmt.Errorf("asking for more of each datagram: %w", err)
		}
		asked[e] = was
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, 0); err != nil {
		return nil, fmt.Errorf("setting SO_PEEK_OFF: %w", err)
	}
	return peekAll(fd)
}

func peekAll(fd int) (queue []Datagram, err error) {
	buf, control := make([]byte, 1<<17), make([]byte, 1<<10)
	const mostErrors = 16 // that wait
	failed := 0
	for {
		n, nc, _, from, err := unix.Recvmsg(fd, buf, control, unix.MSG_PEEK|unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return queue, nil
		case err != nil:
			if failed++; failed > mostErrors {
				return nil, fmt.Errorf("reading the queue: %w", err)
			}
			continue
		}
		if from == nil {
			return queue, nil // the end of what was shut down
		}
		ds, err := datagrams(from, buf[:n], control[:nc])
		if err != nil {
			return nil, err
		}
		queue = append(queue, ds...)
	}
}

// datagrams are what was received at once: several where the kernel has put them together
// for a program that wants that (UDP_GRO).
func datagrams(from unix.Sockaddr, data, control []byte) ([]Datagram, error) {
	d := Datagram{Hops: 64}
	var err error
	if d.From, err = inet.Endpoint(from); err != nil {
		return nil, err
	}
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return nil, err
	}
	segment := 0
	for i := range messages {
		m := &messages[i]
		value := func() int {
			if len(m.Data) < 4 {
				return int(m.Data[0]) // IP_TOS is a byte
			}
			return int(int32(binary.NativeEndian.Uint32(m.Data)))
		}
		if len(m.Data) == 0 {
			continue
		}
		switch (extra{level: int(m.Header.Level), told: int(m.Header.Type)}) {
		case extra{level: unix.SOL_IP, told: unix.IP_ORIGDSTADDR}, extra{level: unix.SOL_IPV6, told: unix.IPV6_ORIGDSTADDR}:
			d.To = inet.ParseSockaddr(m.Data)
		case extra{level: unix.SOL_IP, told: unix.IP_TTL}, extra{level: unix.SOL_IPV6, told: unix.IPV6_HOPLIMIT}:
			d.Hops = uint8(value())
		case extra{level: unix.SOL_IP, told: unix.IP_TOS}, extra{level: unix.SOL_IPV6, told: unix.IPV6_TCLASS}:
			d.Class = uint8(value())
		case extra{level: unix.SOL_UDP, told: unix.UDP_GRO}:
			segment = value()
		}
	}
	d.From = netip.AddrPortFrom(d.From.Addr().Unmap(), d.From.Port())
	if !d.To.IsValid() {
		return nil, errors.New("a datagram of which the kernel does not tell to whom it was sent")
	}
	if segment <= 0 || segment >= len(data) {
		d.Data = slices.Clone(data)
		return []Datagram{d}, nil
	}
	var all []Datagram
	for piece := range slices.Chunk(data, segment) {
		d.Data = slices.Clone(piece)
		all = append(all, d)
	}
	return all, nil
}
