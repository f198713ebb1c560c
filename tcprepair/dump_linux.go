package tcprepair

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/tcprepair/inet"
)

// ErrUnsupported says that a socket cannot be taken apart, with the reason.
var ErrUnsupported = inet.ErrUnsupported

// Look reads what of a socket can be read without repair mode, and disturbs
// nothing: of one without a connection that is everything, of one with a connection
// what tells it from others, what was set and negotiated. waiting is how
// many connections wait in a listener to be accepted.
//
// fd may be any descriptor of the socket.
func Look(fd int) (s *Socket, waiting int, err error) {
	s = &Socket{}
	info, err := s.identify(fd)
	if err == nil {
		err = s.readSettings(fd)
	}
	if err != nil {
		return nil, 0, err
	}
	switch {
	case s.State == Closed:
		return s, 0, s.lookClosed(fd)
	case s.State.Connected():
		s.Negotiated = info.negotiated
		if s.Negotiated.MSS, err = inet.GetInt(fd, unix.SOL_TCP, unix.TCP_MAXSEG); err != nil {
			return nil, 0, fmt.Errorf("reading TCP_MAXSEG: %w", err)
		}
		return s, 0, nil
	}
	return s, int(info.unacked), nil
}

// Dump looks at a socket and reads the rest of it, as DumpRest does.
func Dump(fd int) (*Socket, error) {
	s, _, err := Look(fd)
	if err == nil {
		err = DumpRest(fd, s)
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}

// DumpRest reads what Look, or a Glance, does not tell of a socket whose options nobody has
// changed since. It leaves it in repair mode, out of which Resume or
// Discard take it. Packets of the connection must be held before. A listener
// stays as it is, connections that wait in it are not looked at.
//
// fd may be any descriptor of the socket. The caller needs CAP_NET_ADMIN in the
// user namespace of the socket's network. On an error the socket is as it was.
func DumpRest(fd int, s *Socket) (err error) {
	if s.State == Listen {
		return nil
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_REPAIR, unix.TCP_REPAIR_ON); err != nil {
		return fmt.Errorf("entering repair mode: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, Resume(fd, s))
		}
	}()
	// Until now it could change.
	info, err := readInfo(fd)
	if err != nil {
		return err
	}
	s.State = info.state
	if s.State == Closed {
		return s.readClosed(fd)
	}
	s.Negotiated = info.negotiated
	if err := s.readConnection(fd); err != nil {
		return err
	}
	return s.Validate()
}

// identify reads what a socket is, its state and its addresses.
func (s *Socket) identify(fd int) (i info, err error) {
	is, err := inet.Identify(fd)
	if err != nil {
		return i, err
	}
	s.IPv6, s.MPTCP, s.UID, s.GID = is.IPv6, is.Protocol == unix.IPPROTO_MPTCP, is.UID, is.GID
	i, err = readInfo(fd)
	if err != nil {
		return i, err
	}
	s.State = i.state
	if _, ok := stateNames[s.State]; !ok {
		return i, fmt.Errorf("a socket in %v %w", s.State, ErrUnsupported)
	}
	if s.MPTCP && s.State != Listen {
		return i, fmt.Errorf("a socket in %v that can use several paths (MPTCP) %w", s.State, ErrUnsupported)
	}
	if err := s.readAddresses(fd); err != nil {
		return i, err
	}
	if layer, err := inet.Get(fd, unix.SOL_TCP, unix.TCP_ULP, inet.Longest); !s.MPTCP && err == nil && len(layer) > 0 {
		return i, fmt.Errorf("a socket with the protocol %s on top %w", bytes.TrimRight(layer, "\x00"), ErrUnsupported)
	}
	if s.State == Listen {
		s.Backlog = int(i.sacked)
	}
	return i, nil
}

// readSettings reads what was set of a socket that is not in repair mode, which changes
// some of it.
func (s *Socket) readSettings(fd int) (err error) {
	if s.Options, err = inet.TCP.Read(fd, s.IPv6); err != nil {
		return err
	}
	if s.Buffers, err = inet.ReadBuffers(fd); err != nil {
		return err
	}
	s.Filter, err = inet.ReadFilter(fd, "a socket")
	return err
}

// info is what is used of struct tcp_info.
type info struct {
	state      State
	negotiated Negotiated // without MSS
	unacked    uint32     // of a listener: how many connections wait in it
	sacked     uint32     // of a listener: its backlog
}

// Bits of tcpi_options (include/uapi/linux/tcp.h).
const (
	infoTimestamps = 1
	infoSACK       = 2
	infoScaled     = 4
)

func readInfo(fd int) (info, error) {
	// tcpi_state, ..., tcpi_options at 5, both scales at 6, tcpi_unacked at 24, tcpi_sacked at 28.
	raw, err := inet.Get(fd, unix.SOL_TCP, unix.TCP_INFO, 32)
	if err != nil {
		return info{}, fmt.Errorf("reading TCP_INFO: %w", err)
	}
	if len(raw) < 32 {
		return info{}, fmt.Errorf("TCP_INFO of %d bytes", len(raw))
	}
	i := info{state: State(raw[0])}
	i.negotiated = Negotiated{
		Timestamps: raw[5]&infoTimestamps != 0, SACK: raw[5]&infoSACK != 0, Scaled: raw[5]&infoScaled != 0,
		SendScale: raw[6] & 0xf, ReceiveScale: raw[6] >> 4,
	}
	decode(raw[24:], &i.unacked, &i.sacked)
	return i, nil
}

func (s *Socket) readAddresses(fd int) error {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return err
	}
	if s.Local, err = inet.Endpoint(sa); err != nil {
		return err
	}
	if s.Local.Addr().IsUnspecified() && s.Local.Port() == 0 {
		s.Local = netip.AddrPort{}
	}
	if !s.State.Connected() {
		return nil
	}
	if sa, err = unix.Getpeername(fd); err != nil {
		return err
	}
	s.Remote, err = inet.Endpoint(sa)
	return err
}

// lookClosed finds out whether a closed socket had a connection.
func (s *Socket) lookClosed(fd int) error {
	s.Remote = netip.AddrPort{}
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
	if _, err := unix.Poll(poll, 0); err != nil {
		return err
	}
	s.Ended = poll[0].Revents&unix.POLLRDHUP != 0
	s.Failed = poll[0].Revents&unix.POLLERR != 0
	return nil
}

// readClosed reads what a connection has left.
func (s *Socket) readClosed(fd int) error {
	if err := s.lookClosed(fd); err != nil || !s.Ended {
		return err
	}
	n, err := unix.IoctlGetInt(fd, unix.SIOCINQ)
	if err == nil {
		err = s.peekFromStart(fd)
	}
	if err == nil {
		_, err = peek(fd, receiveQueue, n, &s.Receive)
	}
	if err != nil {
		return fmt.Errorf("reading the receive queue: %w", err)
	}
	return unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_REPAIR_QUEUE, noQueue)
}

// readConnection reads what a connection consists of. The socket is in repair mode.
func (s *Socket) readConnection(fd int) error {
	var err error
	if s.Negotiated.MSS, err = inet.GetInt(fd, unix.SOL_TCP, unix.TCP_MAXSEG); err != nil {
		return fmt.Errorf("reading TCP_MAXSEG: %w", err)
	}
	if s.Timestamp, err = inet.GetInt(fd, unix.SOL_TCP, unix.TCP_TIMESTAMP); err != nil {
		return fmt.Errorf("reading TCP_TIMESTAMP: %w", err)
	}
	raw, err := inet.Get(fd, unix.SOL_TCP, unix.TCP_REPAIR_WINDOW, 4*5)
	if err != nil {
		return fmt.Errorf("reading TCP_REPAIR_WINDOW: %w", err)
	}
	w := &s.Window
	if !decode(raw, &w.SendWL1, &w.SendWindow, &w.MaxWindow, &w.ReceiveWindow, &w.ReceiveWindowT) {
		return fmt.Errorf("TCP_REPAIR_WINDOW of %d bytes", len(raw))
	}
	if err := s.readReceiveQueue(fd); err != nil {
		return fmt.Errorf("reading the receive queue: %w", err)
	}
	if err := s.readSendQueue(fd); err != nil {
		return fmt.Errorf("reading the send queue: %w", err)
	}
	return unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_REPAIR_QUEUE, noQueue)
}

// Queues of TCP_REPAIR_QUEUE (include/uapi/linux/tcp.h).
const (
	noQueue      = 0
	receiveQueue = 1
	sendQueue    = 2
)

func (s *Socket) readReceiveQueue(fd int) error {
	// Without repair mode's say, as it is no byte of a queue.
	if _, _, err := unix.Recvfrom(fd, make([]byte, 1), unix.MSG_PEEK|unix.MSG_OOB|unix.MSG_DONTWAIT); err == nil {
		return fmt.Errorf("a connection with urgent data that was not read yet %w", ErrUnsupported)
	}
	n, err := unix.IoctlGetInt(fd, unix.SIOCINQ)
	if err != nil {
		return err
	}
	if err := s.peekFromStart(fd); err != nil {
		return fmt.Errorf("setting SO_PEEK_OFF: %w", err)
	}
	end, err := peek(fd, receiveQueue, n, &s.Receive)
	if err != nil {
		return err
	}
	if s.State.receivedFIN() {
		end--
	}
	s.Receive.Seq = end - uint32(n)
	return nil
}

func (s *Socket) readSendQueue(fd int) error {
	n, err := unix.IoctlGetInt(fd, unix.SIOCOUTQ)
	if err != nil {
		return err
	}
	if s.Unsent, err = unix.IoctlGetInt(fd, siocOutQNSD); err != nil {
		return err
	}
	// Our FIN counts as a byte until it is acknowledged.
	fin := 0
	if s.State == FinWait1 || s.State == LastAck || s.State == Closing {
		fin = 1
		if s.Unsent > 0 {
			s.FINUnsent = true
			s.Unsent--
		}
	}
	end, err := peek(fd, sendQueue, n-fin, &s.Send)
	if err != nil {
		return err
	}
	s.Send.Seq = end - uint32(n)
	if s.State == FinWait2 {
		s.Send.Seq = end - 1
	}
	return nil
}

const siocOutQNSD = 0x894b // SIOCOUTQNSD (include/uapi/linux/sockios.h)

// peekFromStart lets looks at the receive queue begin where it does, and change nothing: what a
// program has set (SO_PEEK_OFF) Resume sets again.
func (s *Socket) peekFromStart(fd int) error {
	for _, o := range s.Options {
		if o.Level == unix.SOL_SOCKET && o.Name == unix.SO_PEEK_OFF && !bytes.Equal(o.Value, encode(noOffset)) {
			return inet.SetInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, noOffset)
		}
	}
	return nil
}

const noOffset = 1<<32 - 1 // -1

// peek reads n bytes of a queue and the sequence number behind it.
func peek(fd, queue, n int, q *Queue) (end uint32, err error) {
	if err := unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_REPAIR_QUEUE, queue); err != nil {
		return 0, err
	}
	if end, err = inet.GetInt(fd, unix.SOL_TCP, unix.TCP_QUEUE_SEQ); err != nil {
		return 0, err
	}
	if n < 0 {
		return 0, fmt.Errorf("%d bytes", n)
	}
	if n == 0 {
		return end, nil
	}
	q.Data = make([]byte, n)
	got, _, err := unix.Recvfrom(fd, q.Data, unix.MSG_PEEK|unix.MSG_DONTWAIT)
	if err != nil {
		return 0, err
	}
	if got != n {
		return 0, fmt.Errorf("%d bytes of %d", got, n)
	}
	return end, nil
}

// Resume lets a socket that Dump has read go on where it is. Packets that were
// held are to be delivered after it.
func Resume(fd int, s *Socket) error {
	if s.State == Listen {
		return nil
	}
	// Without a probe of the peer's window: nothing has happened.
	err := unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_REPAIR, unix.TCP_REPAIR_OFF_NO_WP)
	if err != nil {
		return fmt.Errorf("leaving repair mode: %w", err)
	}
	return inet.TCP.Set(fd, s.Options, nil, inet.AtLast)
}

// Discard closes a socket that Dump has read, if fd is its last descriptor:
// nobody is told.
func Discard(fd int) error { return unix.Close(fd) }
