package acceptqueue

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/mdlayher/netlink"
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

// A Filler puts connections into accept queues. It has a program at the ingress of the
// loopback device, which goes with it, even if this process dies. One goroutine at a time
// uses it, in the network namespace in which it was made.
type Filler struct {
	orders, listeners *ebpf.Map
	program           *ebpf.Program
	link              link.Link
	diag              *netlink.Conn
	mtu               int          // of the loopback device
	forbid            func() error // makes the setting about SYN cookies what it was
}

// NewFiller loads the program, which takes tens of milliseconds, as the kernel's types are
// read, and attaches it. The caller needs CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN and CAP_NET_RAW.
//
// The kernel makes connections of acknowledgements only while SYN cookies are allowed
// (net.ipv4.tcp_syncookies): where they are not, they are from now on until Close.
func NewFiller() (_ *Filler, err error) {
	f := &Filler{}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	k, err := lookUpKernel()
	if err != nil {
		return nil, err
	}
	f.orders, err = ebpf.NewMap(&ebpf.MapSpec{Name: "pagurus_orders", Type: ebpf.Hash, KeySize: tupleBytes, ValueSize: orderBytes, MaxEntries: 1})
	if err != nil {
		return nil, fmt.Errorf("making a map: %w", err)
	}
	f.listeners, err = ebpf.NewMap(&ebpf.MapSpec{Name: "pagurus_listen", Type: ebpf.SockMap, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		return nil, fmt.Errorf("making a map: %w", err)
	}
	if f.program, err = ebpf.NewProgram(program(k, f.orders, f.listeners)); err != nil {
		return nil, fmt.Errorf("loading the program: %w", err)
	}
	lo, err := routes.LinkByName("lo")
	if err != nil {
		return nil, fmt.Errorf("looking for the loopback device: %w", err)
	}
	f.mtu = lo.Attrs().MTU
	f.link, err = link.AttachTCX(link.TCXOptions{
		Interface: lo.Attrs().Index, Program: f.program, Attach: ebpf.AttachTCXIngress, Anchor: link.Head(),
	})
	if err != nil {
		return nil, fmt.Errorf("attaching the program to the loopback device: %w", err)
	}
	if f.diag, err = dialDiag(); err != nil {
		return nil, err
	}
	f.forbid, err = allow(cookiesSetting)
	return f, err
}

// Close takes the program away.
func (f *Filler) Close() error {
	var errs []error
	if f.forbid != nil {
		errs = append(errs, f.forbid())
	}
	if f.link != nil {
		errs = append(errs, f.link.Close())
	}
	if f.program != nil {
		errs = append(errs, f.program.Close())
	}
	if f.diag != nil {
		errs = append(errs, f.diag.Close())
	}
	for _, m := range []*ebpf.Map{f.orders, f.listeners} {
		if m != nil {
			errs = append(errs, m.Close())
		}
	}
	return errors.Join(errs...)
}

// Put puts a connection that Drain has returned, or one like it, behind those that wait in a
// listener.
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
	protocol, err := unix.GetsockoptInt(listener, unix.SOL_SOCKET, unix.SO_PROTOCOL)
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
	if l.waiting > l.backlog {
		return fmt.Errorf("%w: %d wait, the backlog is %d", ErrFull, l.waiting, l.backlog)
	}
	device, err := inet.GetInt(listener, unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX)
	switch {
	case err != nil:
		return fmt.Errorf("reading SO_BINDTOIFINDEX: %w", err)
	case device != 0: // its connections take nothing from the loopback device
		return fmt.Errorf("a connection of a listener that is bound to a device %w", tcprepair.ErrUnsupported)
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
	defer func() { err = errors.Join(err, f.orders.Delete(key)) }()

	if err := s.Inject(s.Receive.Seq, nil, false); err != nil {
		return err
	}
	err = await(func() (bool, error) {
		err := f.orders.Lookup(key, &o)
		return o.Done != 0, err
	})
	switch {
	case err != nil:
		return fmt.Errorf("%w: the program has not seen our packet: %w", ErrRefused, err)
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

const headers = 40 + 20 // of IPv6 and TCP

// fill gives the connection what the peer has sent.
func (f *Filler) fill(s *tcprepair.Socket) error {
	data := s.Receive.Data
	size := min(piece, f.mtu-headers)
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

// Packets of the loopback device are mostly done with when they are sent; a busy host may do
// them a little later.
const (
	patience = 500 * time.Millisecond
	pause    = 50 * time.Microsecond
)

var errLate = fmt.Errorf("not within %v", patience)

func await(done func() (bool, error)) error {
	for begun := time.Now(); ; <-time.After(pause) {
		if ok, err := done(); ok || err != nil {
			return err
		}
		if time.Since(begun) > patience {
			return errLate
		}
	}
}

// makeRoom gives the listener a receive buffer that connections inherit which hold the data.
func makeRoom(listener int, s *tcprepair.Socket) (restore func() error, err error) {
	had, err := inet.ReadBuffers(listener)
	if err != nil {
		return nil, err
	}
	want := had
	want.Receive = max(had.Receive, s.Buffers.Receive, uint32(min(overhead*len(s.Receive.Data), maxBuffer)))
	if want == had {
		return func() error { return nil }, nil
	}
	if err := want.Settle(listener); err != nil {
		return nil, errors.Join(err, had.Settle(listener))
	}
	return func() error { return had.Settle(listener) }, nil
}

const (
	overhead  = 4       // bytes of buffer that one of data takes at most
	maxBuffer = 1 << 30 // what the kernel allows (SO_RCVBUFFORCE, sk_setsockopt)
)

// listening is what is used of a listener's struct tcp_info.
type listening struct{ waiting, backlog uint32 }

func lookListener(fd int) (l listening, err error) {
	// tcpi_state, tcpi_unacked at 24, tcpi_sacked at 28.
	raw, err := inet.Get(fd, unix.SOL_TCP, unix.TCP_INFO, 32)
	switch {
	case err != nil:
		return l, fmt.Errorf("reading TCP_INFO: %w", err)
	case len(raw) < 32:
		return l, fmt.Errorf("TCP_INFO of %d bytes", len(raw))
	case tcprepair.State(raw[0]) != tcprepair.Listen:
		return l, fmt.Errorf("%w: it does not listen, it is in %v", ErrRefused, tcprepair.State(raw[0]))
	}
	return listening{waiting: binary.NativeEndian.Uint32(raw[24:]), backlog: binary.NativeEndian.Uint32(raw[28:])}, nil
}
