package acceptqueue

import (
	"errors"
	"fmt"

	routes "github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/tcprepair"
	"github.com/pagurus-project/pagurus/tcprepair/inet"
)

// Why a connection was not put. After each of them but ErrIncomplete nothing of it is left,
// and nothing was sent to its peer.
var (
	// ErrFull: as many connections wait in the listener as its backlog allows.
	ErrFull = errors.New("the accept queue is full")
	// ErrExists: the host has this connection already.
	ErrExists = errors.New("there is such a connection")
	// ErrRefused: the kernel has not made a connection, for a reason that it does not tell or
	// that is told with this.
	ErrRefused = errors.New("the kernel has not made the connection")
	// ErrIncomplete: it is in the queue, but not as it was. It can only be reset.
	ErrIncomplete = errors.New("the connection was put but is not complete")
)

// Put puts a connection that Drain has returned, or one like it, behind those that wait in a
// listener, given by any descriptor of it. It has returned when accept(2) would return
// the connection. Its local address must be the host's own by now, its packets must be held,
// and nobody may accept yet. For a moment the listener has another receive buffer and no
// SO_REUSEPORT, or, for MPTCP, a listener beside it.
func (f *Filler) Put(listener int, s *tcprepair.Socket) error {
	if err := f.put(listener, s); err != nil {
		return fmt.Errorf("putting the connection of %v and %v into an accept queue: %w", s.Local, s.Remote, err)
	}
	return nil
}

func (f *Filler) put(listener int, s *tcprepair.Socket) error {
	if err := fits(s); err != nil {
		return err
	}
	if err := f.check(listener, s); err != nil {
		return err
	}
	protocol, err := inet.GetInt(listener, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	switch {
	case err != nil:
		return fmt.Errorf("reading SO_PROTOCOL: %w", err)
	case protocol == unix.IPPROTO_MPTCP:
		return f.putByHelper(listener, s)
	}
	return f.putInto(listener, s, 0)
}

// putInto makes the connection, in a listener of plain TCP, of whose group so many must be,
// if group is not 0.
func (f *Filler) putInto(listener int, s *tcprepair.Socket, group uint32) (err error) {
	restore, err := makeRoom(listener, s)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, restore()) }()
	// Of a group of listeners with one port the kernel would choose one, whichever is named
	// (inet_steal_sock). One that looks alone gets what is meant for it; it stays in its group.
	grouped, err := inet.GetInt(listener, unix.SOL_SOCKET, unix.SO_REUSEPORT)
	if err != nil {
		return fmt.Errorf("reading SO_REUSEPORT: %w", err)
	}
	if grouped != 0 {
		if err := shared(listener, 0); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, shared(listener, grouped)) }()
	}
	if err := f.connect(listener, s, group); err != nil {
		return err
	}
	if err := f.fill(s); err != nil {
		return fmt.Errorf("%w: %w", ErrIncomplete, err)
	}
	return nil
}

// check finds out what can be known before.
func (f *Filler) check(listener int, s *tcprepair.Socket) error {
	l, err := lookListener(listener)
	if err != nil {
		return err
	}
	if l.device != 0 { // its connections take nothing from the loopback device
		return fmt.Errorf("a connection of a listener that is bound to a device %w", tcprepair.ErrUnsupported)
	}
	if l.port != s.Local.Port() {
		return fmt.Errorf("%w: it listens at port %d", ErrRefused, l.port)
	}
	if l.waiting > l.backlog {
		return fmt.Errorf("%w: %d wait, the backlog is %d", ErrFull, l.waiting, l.backlog)
	}
	// To an address that is not the host's own, our acknowledgement would leave it.
	ways, err := routes.RouteGet(s.Local.Addr().Unmap().AsSlice())
	if err != nil || len(ways) == 0 || ways[0].Type != unix.RTN_LOCAL {
		return fmt.Errorf("%w: the address is not this host's: %w", ErrRefused, errors.Join(err, unix.EADDRNOTAVAIL))
	}
	have, err := look(f.diag, s)
	if err == nil && have != (found{}) {
		err = fmt.Errorf("%w, in %v", ErrExists, have.state)
	}
	return err
}

// connect makes the connection, without its data.
func (f *Filler) connect(listener int, s *tcprepair.Socket, group uint32) (err error) {
	key := tupleOf(s)
	if err := f.listeners.Put(uint32(0), uint64(listener)); err != nil {
		return fmt.Errorf("telling the program the listener: %w", err)
	}
	defer func() { err = errors.Join(err, f.listeners.Delete(uint32(0))) }()
	o := orderFor(s)
	o.Group = group
	if err := f.orders.Put(key, o); err != nil {
		return fmt.Errorf("telling the program the connection: %w", err)
	}
	late := false
	defer func() {
		if !late {
			err = errors.Join(err, f.orders.Delete(key))
		}
	}()

	if err := s.Inject(s.Receive.Seq, nil, false); err != nil {
		return err
	}
	err = await(func() (bool, error) {
		err := f.orders.Lookup(key, &o)
		return o.Done != 0, err
	})
	switch {
	case errors.Is(err, errLate): // it may come yet, and is to be dropped then
		late, o.Group = true, nobody
		return fmt.Errorf("%w: the program has not seen our packet: %w", ErrRefused, errors.Join(err, f.orders.Put(key, o)))
	case err != nil:
		return err
	case o.Result == -int32(unix.EINVAL):
		return fmt.Errorf("%w: what was negotiated is not allowed here (net.ipv4.tcp_sack, tcp_timestamps, tcp_window_scaling), or its segments are too small, %d bytes: %w",
			ErrRefused, s.Negotiated.MSS, unix.EINVAL)
	case o.Result != 0:
		return fmt.Errorf("%w: %w", ErrRefused, unix.Errno(-o.Result))
	}
	if err := f.awaitState(s, tcprepair.Established, 0); err != nil {
		return fmt.Errorf("%w: %w", ErrRefused, err)
	}
	return nil
}

func orderFor(s *tcprepair.Socket) order {
	flag := map[bool]uint8{true: 1}
	n := &s.Negotiated
	return order{
		// The offset of our clock comes from what it showed. What the peer's showed is not
		// known: 0 is no time that its packets would be compared with (tcp_paws_check).
		TSEcr: s.Timestamp,
		MSS:   uint16(n.MSS), ReceiveScale: n.ReceiveScale, SendScale: n.SendScale,
		Scaled: flag[n.Scaled], SACK: flag[n.SACK], Stamps: flag[n.Timestamps],
	}
}

// piece is how much data a segment has at most: with the kernel's own description of it, it
// fits into 32 KiB, which is what such packets are given. A larger one would be given twice
// of that, and count so in the receive buffer.
const piece = 32000

const (
	headers  = 40 + 20 // of IPv6 and TCP
	smallest = 512
)

// fill gives the connection what the peer has sent.
func (f *Filler) fill(s *tcprepair.Socket) error {
	data := s.Receive.Data
	size := min(piece, max(f.mtu-headers, smallest))
	for from := 0; from < len(data); from += size {
		to := min(from+size, len(data))
		if err := s.Inject(s.Receive.Seq+uint32(from), data[from:to], false); err != nil {
			return err
		}
		if err := f.awaitState(s, tcprepair.Established, to); err != nil {
			return err
		}
	}
	if s.State != tcprepair.CloseWait {
		return nil
	}
	if err := s.Inject(s.Receive.Seq+uint32(len(data)), nil, true); err != nil {
		return err
	}
	return f.awaitState(s, tcprepair.CloseWait, len(data)+1)
}

// awaitState waits until the connection is in a state, with so many bytes in its receive
// queue, and nobody's.
func (f *Filler) awaitState(s *tcprepair.Socket, state tcprepair.State, queued int) error {
	var have found
	err := await(func() (_ bool, err error) {
		have, err = look(f.diag, s)
		return have == found{state: state, queued: uint32(queued)}, err
	})
	switch {
	case !errors.Is(err, errLate):
		return err
	case have == found{}:
		return fmt.Errorf("there is none: %w", err)
	}
	return fmt.Errorf("it is in %v with %d bytes of %d, inode %d: %w", have.state, have.queued, queued, have.inode, err)
}
