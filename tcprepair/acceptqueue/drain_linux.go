package acceptqueue

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/tcprepair"
	"github.com/pagurus-project/pagurus/tcprepair/inet"
)

// ErrEnded says of a connection that its peer has reset it before it was accepted.
var ErrEnded = errors.New("it has ended")

// Drain accepts the connections that wait in a listener, the first to be accepted first,
// reads each (tcprepair.Dump) and closes it without its peer being told. What is returned as
// waiting can be Put into another listener; lost tells of each connection that cannot, and
// why: it was reset (ErrEnded), it can use several paths, it has urgent data
// (tcprepair.ErrUnsupported). If the listener itself cannot be accepted from, that is the last
// of them, and connections may be left in it.
//
// Packets of the connections must be held before. Nobody else may accept: it waits for
// nothing, but another one could take what it has seen. The listener stays as it is,
// O_NONBLOCK included, which it shares with all of its descriptors. The caller needs
// CAP_NET_ADMIN in the user namespace of the socket's network.
func Drain(listener int) (waiting []*tcprepair.Socket, lost []error) {
	for {
		some, err := readable(listener)
		if err != nil {
			return waiting, append(lost, fmt.Errorf("waiting for connections: %w", err))
		}
		if !some {
			return waiting, lost
		}
		fd, sa, err := unix.Accept4(listener, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ECONNABORTED):
			lost = append(lost, fmt.Errorf("accepting a connection: %w", err))
			continue
		case errors.Is(err, unix.EAGAIN):
			return waiting, lost
		case err != nil:
			return waiting, append(lost, fmt.Errorf("accepting connections: %w", err))
		}
		s, err := take(fd)
		if err != nil {
			lost = append(lost, fmt.Errorf("the connection from %v: %w", endpoint(sa), err))
			continue
		}
		waiting = append(waiting, s)
	}
}

// readable reports a listener in which a connection waits.
func readable(listener int) (bool, error) {
	poll := []unix.PollFd{{Fd: int32(listener), Events: unix.POLLIN}}
	for {
		_, err := unix.Ppoll(poll, &unix.Timespec{}, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return false, err
		case poll[0].Revents&unix.POLLNVAL != 0:
			return false, unix.EBADF
		}
		return poll[0].Revents&unix.POLLIN != 0, nil
	}
}

// take reads an accepted connection and closes it.
func take(fd int) (*tcprepair.Socket, error) {
	s, err := tcprepair.Dump(fd)
	if err == nil {
		err = fits(s)
	}
	if err != nil {
		// Not one byte for the peer, whose packets may go to another host by now. Where there
		// is no repair mode (MPTCP), its own packets are held as well.
		_ = unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_REPAIR, unix.TCP_REPAIR_ON)
	}
	return s, errors.Join(err, tcprepair.Discard(fd))
}

// fits reports why a socket is not one that waits to be accepted, and could be put again.
func fits(s *tcprepair.Socket) error {
	if err := s.Validate(); err != nil {
		return err
	}
	switch {
	case s.State == tcprepair.Closed:
		return ErrEnded
	case s.State != tcprepair.Established && s.State != tcprepair.CloseWait:
		return fmt.Errorf("a connection in %v %w", s.State, tcprepair.ErrUnsupported)
	case len(s.Send.Data) > 0: // nobody had a descriptor to write to
		return fmt.Errorf("%w: %d bytes to be sent before it was accepted", tcprepair.ErrInvalid, len(s.Send.Data))
	case s.Local.Addr().Zone() != "" || s.Remote.Addr().Zone() != "":
		// The kernel would think that the peer is beyond the loopback device.
		return fmt.Errorf("a connection of link-local addresses, %v and %v, %w", s.Local, s.Remote, tcprepair.ErrUnsupported)
	}
	return nil
}

// endpoint is an address for a message.
func endpoint(sa unix.Sockaddr) netip.AddrPort {
	a, _ := inet.Endpoint(sa) // it came from the kernel
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}
