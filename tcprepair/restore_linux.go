package tcprepair

import (
	"errors"
	"fmt"
	"maps"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/tcprepair/inet"
)

// A Restorer makes sockets. It knows how new ones look, so that many are made
// quickly; as that can change (sysctl(8)), it is to be used for a moment. Its methods
// may be called from any goroutine of one network namespace.
type Restorer struct{ four, six fresh }

// fresh is how options are in new sockets of a family, and in those that were given a
// connection; nil: not known.
type fresh struct{ unbound, connected inet.Fresh }

// NewRestorer looks at new sockets.
func NewRestorer() (*Restorer, error) {
	r := &Restorer{}
	for _, ipv6 := range []bool{false, true} {
		made, err := freshOptions(ipv6)
		switch {
		case errors.Is(err, unix.EAFNOSUPPORT): // and none of that kind can be made
		case err != nil:
			return nil, fmt.Errorf("looking at a new socket: %w", err)
		case ipv6:
			r.six = made
		default:
			r.four = made
		}
	}
	return r, nil
}

func freshOptions(ipv6 bool) (f fresh, err error) {
	fd, err := (&Socket{IPv6: ipv6}).socket()
	if err != nil {
		return f, err
	}
	defer unix.Close(fd)
	if f.unbound, err = inet.TCP.Fresh(fd, ipv6); err != nil {
		return f, err
	}
	f.connected = maps.Clone(f.unbound)
	delete(f.connected, inet.TCP.Kind(unix.SOL_SOCKET, unix.SO_PRIORITY)) // depends on IP_TOS
	// They are the connection's, and set whatever they are.
	f.connected[inet.TCP.Kind(unix.SOL_SOCKET, unix.SO_INCOMING_CPU)] = nil
	f.connected[inet.TCP.Kind(unix.SOL_TCP, unix.TCP_WINDOW_CLAMP)] = nil
	return f, nil
}

// Restore makes a socket of what Dump has read on another host. A connection is
// in repair mode until Activate; a listener takes connections from now on.
//
// Packets of the connection must be held: what Restore itself makes the kernel
// answer is to be dropped. The local address must be the host's own by now; early,
// it may become that later, before Arrive.
// The descriptor is non-blocking and closed by exec. The caller needs
// CAP_NET_ADMIN and CAP_NET_RAW. On an error nothing is left.
func (r *Restorer) Restore(s *Socket, early bool) (fd int, err error) {
	if err := s.Validate(); err != nil {
		return -1, err
	}
	if fd, err = s.socket(); err != nil {
		return -1, err
	}
	if err := s.build(fd, early, r.fresh(s).unbound); err != nil {
		return -1, errors.Join(fmt.Errorf("restoring %v of %v and %v: %w", s.State, s.Local, s.Remote, err), unix.Close(fd))
	}
	return fd, nil
}

func (r *Restorer) fresh(s *Socket) fresh {
	switch {
	case s.MPTCP:
		return fresh{}
	case s.IPv6:
		return r.six
	}
	return r.four
}

// Restore makes one socket, as a Restorer does.
func Restore(s *Socket, early bool) (fd int, err error) { return (&Restorer{}).Restore(s, early) }

func (s *Socket) socket() (int, error) {
	i := inet.Identity{IPv6: s.IPv6, Protocol: unix.IPPROTO_TCP, UID: s.UID, GID: s.GID}
	if s.MPTCP {
		i.Protocol = unix.IPPROTO_MPTCP
	}
	return inet.Open(unix.SOCK_STREAM, i)
}

func (s *Socket) build(fd int, early bool, fresh inet.Fresh) error {
	if err := s.beforeBind(fd, fresh); err != nil {
		return err
	}
	if s.State.Connected() {
		return s.connect(fd, early, fresh)
	}
	if s.Local.IsValid() {
		if err := inet.Bind(fd, s.Local, s.IPv6, early); err != nil {
			return err
		}
	}
	switch {
	case s.State == Listen:
		if err := s.settle(fd); err != nil {
			return err
		}
		return unix.Listen(fd, s.Backlog)
	case s.Ended && early:
		return nil // it can be told nothing yet
	case s.Ended:
		return s.end(fd)
	}
	return s.settle(fd)
}

// CanBind reports why this host would not let a socket without a connection have
// its local address at present: the address is not the host's, or another socket
// has the port. To find out, the address is taken for a moment. Early, the address
// need not be the host's, as for Restore.
func CanBind(s *Socket, early bool) error {
	if err := s.Validate(); err != nil || !s.Local.IsValid() {
		return err
	}
	fd, err := s.socket()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := inet.TCP.Set(fd, s.Options, nil, inet.BeforeBind); err != nil {
		return err
	}
	for i := range s.Options {
		if o := &s.Options[i]; o.Level == unix.SOL_SOCKET && o.Name == unix.SO_REUSEADDR {
			if err := inet.Set(fd, o.Level, o.Name, o.Value); err != nil {
				return err
			}
		}
	}
	return inet.Bind(fd, s.Local, s.IPv6, early)
}

// beforeBind sets what decides about the local address, and lets no other socket be in the
// way of that: by repair mode, which MPTCP does not have.
func (s *Socket) beforeBind(fd int, fresh inet.Fresh) error {
	if err := inet.TCP.Set(fd, s.Options, fresh, inet.BeforeBind); err != nil {
		return err
	}
	if s.MPTCP {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return fmt.Errorf("setting SO_REUSEADDR: %w", err)
		}
	} else if err := unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_REPAIR, unix.TCP_REPAIR_ON); err != nil {
		return fmt.Errorf("entering repair mode: %w", err)
	}
	return nil
}

// settle gives a socket without a connection what is left.
func (s *Socket) settle(fd int) error {
	if err := s.set(fd, nil, inet.WhileSilent); err != nil {
		return err
	}
	return s.leaveRepair(fd)
}

// leaveRepair ends repair mode and sets what it has kept from being set.
func (s *Socket) leaveRepair(fd int) error {
	if !s.MPTCP {
		if err := unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_REPAIR, unix.TCP_REPAIR_OFF_NO_WP); err != nil {
			return fmt.Errorf("leaving repair mode: %w", err)
		}
	}
	if err := s.Buffers.Settle(fd); err != nil {
		return err
	}
	return s.finish(fd, nil)
}

// set sets the options of one time.
func (s *Socket) set(fd int, fresh inet.Fresh, p inet.Phase) error {
	if err := inet.TCP.Set(fd, s.Options, fresh, p); err != nil {
		return err
	}
	return inet.TCP.Set(fd, s.Own, fresh, p)
}

// finish sets what acts at once.
func (s *Socket) finish(fd int, fresh inet.Fresh) error {
	if err := s.set(fd, fresh, inet.AtLast); err != nil {
		return err
	}
	if len(s.Filter) == 0 {
		return nil
	}
	if err := s.Filter.Attach(fd); err != nil {
		return fmt.Errorf("attaching the filter: %w", err)
	}
	return nil
}

// connect makes the connection as it was, without a packet.
func (s *Socket) connect(fd int, early bool, fresh inet.Fresh) error {
	local, err := inet.Sockaddr(s.Local, s.IPv6)
	if err != nil {
		return err
	}
	err = inet.Abroad(fd, s.IPv6, early, func() error {
		if err := unix.Bind(fd, local); err != nil {
			return fmt.Errorf("binding to %v: %w", s.Local, err)
		}
		return s.establish(fd)
	})
	if err != nil {
		return err
	}
	return s.equip(fd, early, fresh)
}

// equip gives an established one its parts.
func (s *Socket) equip(fd int, early bool, fresh inet.Fresh) error {
	if err := setBuffers(fd, s); err != nil {
		return err
	}
	if err := inet.Set(fd, unix.SOL_TCP, unix.TCP_REPAIR_OPTIONS, s.Negotiated.encode()); err != nil {
		return fmt.Errorf("setting TCP_REPAIR_OPTIONS: %w", err)
	}
	if err := s.set(fd, fresh, inet.WhileSilent); err != nil {
		return err
	}
	if len(s.Receive.Data) > 0 || len(s.Send.Data) > s.Unsent {
		if err := fill(fd, receiveQueue, s.Receive.Data); err != nil {
			return fmt.Errorf("filling the receive queue: %w", err)
		}
		if err := fill(fd, sendQueue, s.Send.Data[:len(s.Send.Data)-s.Unsent]); err != nil {
			return fmt.Errorf("filling the send queue: %w", err)
		}
	}
	if early && s.hears() {
		return nil // as above
	}
	return s.reach(fd)
}

// establish makes it of a bound socket.
func (s *Socket) establish(fd int) error {
	if err := inet.SetInt(fd, unix.SOL_TCP, unix.TCP_TIMESTAMP, s.Timestamp); err != nil {
		return fmt.Errorf("setting TCP_TIMESTAMP: %w", err)
	}
	for _, queue := range []struct {
		name int
		seq  uint32
	}{{receiveQueue, s.Receive.Seq}, {sendQueue, s.Send.Seq}} {
		err := unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_REPAIR_QUEUE, queue.name)
		if err == nil {
			err = inet.SetInt(fd, unix.SOL_TCP, unix.TCP_QUEUE_SEQ, queue.seq)
		}
		if err != nil {
			return fmt.Errorf("setting TCP_QUEUE_SEQ: %w", err)
		}
	}
	remote, err := inet.Sockaddr(s.Remote, s.IPv6)
	if err != nil {
		return err
	}
	// The size of segments is worked out by connect, and not again before the
	// path's MTU changes (tcp_connect_init, tcp_current_mss).
	if err := inet.SetInt(fd, unix.SOL_TCP, unix.TCP_MAXSEG, min(s.Negotiated.MSS, maxUserMSS)); err != nil {
		return fmt.Errorf("setting TCP_MAXSEG: %w", err)
	}
	if err := unix.Connect(fd, remote); err != nil {
		return fmt.Errorf("connecting: %w", err)
	}
	if err := inet.SetInt(fd, unix.SOL_TCP, unix.TCP_MAXSEG, 0); err != nil {
		return fmt.Errorf("setting TCP_MAXSEG: %w", err)
	}
	return nil
}

// Arrive goes on with a socket that was restored early, when its local address is the
// host's: before Activate. What it needs of s is in its Rest. It may be repeated.
func Arrive(fd int, s *Socket) error {
	if s.Ended {
		return s.endLate(fd)
	}
	if !s.hears() {
		return nil
	}
	i, err := readInfo(fd)
	if err != nil {
		return err
	}
	if i.state == Established {
		return s.reach(fd)
	}
	on, err := unix.GetsockoptInt(fd, unix.SOL_TCP, unix.TCP_REPAIR)
	if err == nil && on != 0 {
		err = s.setWindow(fd) // that may be what was not done
	}
	return errors.Join(err, s.reached(fd))
}

// hears reports a state that segments of the peer lead to, which are sent again.
func (s *Socket) hears() bool {
	return s.State == CloseWait || s.State == LastAck || s.State == FinWait2 || s.State == Closing
}

// reach brings a connection from where it is established to where it was.
func (s *Socket) reach(fd int) error {
	if s.State == Established { // it is there
		return s.setWindow(fd)
	}
	if err := s.close(fd); err != nil {
		return err
	}
	if err := s.setWindow(fd); err != nil {
		return err
	}
	return s.reached(fd)
}

func (s *Socket) setWindow(fd int) error {
	w := &s.Window
	err := inet.Set(fd, unix.SOL_TCP, unix.TCP_REPAIR_WINDOW,
		encode(w.SendWL1, w.SendWindow, w.MaxWindow, w.ReceiveWindow, w.ReceiveWindowT))
	if err != nil {
		return fmt.Errorf("setting TCP_REPAIR_WINDOW: %w", err)
	}
	return nil
}

// maxUserMSS is the largest TCP_MAXSEG (MAX_TCP_WINDOW, include/net/tcp.h).
const maxUserMSS = 32767

// Options of TCP_REPAIR_OPTIONS are pairs of a TCP option's kind and a value.
const (
	optionMSS        = 2
	optionWScale     = 3
	optionSACK       = 4
	optionTimestamps = 8
)

func (n *Negotiated) encode() []byte {
	b := encode(optionMSS, n.MSS)
	if n.Scaled {
		b = append(b, encode(optionWScale, uint32(n.SendScale)|uint32(n.ReceiveScale)<<16)...)
	}
	if n.SACK {
		b = append(b, encode(optionSACK, 0)...)
	}
	if n.Timestamps {
		b = append(b, encode(optionTimestamps, 0)...)
	}
	return b
}

// fill writes data into a queue of a socket in repair mode.
func fill(fd, queue int, data []byte) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_REPAIR_QUEUE, queue); err != nil {
		return err
	}
	return write(fd, data)
}

// write writes all of data to a socket that has room for it. Large pieces may
// want more contiguous memory than there is.
func write(fd int, data []byte) error {
	const smallest = 4096
	piece := len(data)
	for len(data) > 0 {
		n, err := unix.SendmsgN(fd, data[:min(piece, len(data))], nil, nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EINTR):
		case (errors.Is(err, unix.ENOMEM) || errors.Is(err, unix.ENOBUFS)) && piece > smallest:
			piece /= 2
		case err != nil:
			return err
		}
		data = data[max(n, 0):]
	}
	return nil
}

// close brings a connection that is established from there to where it was: by
// our FIN, which is not sent, and by the peer's segments, which are sent again
// in its name.
func (s *Socket) close(fd int) error {
	// What is put into this queue, our FIN too, counts as sent and is not (tcp_write_xmit).
	if err := unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_REPAIR_QUEUE, sendQueue); err != nil {
		return fmt.Errorf("setting TCP_REPAIR_QUEUE: %w", err)
	}
	const fin = 1 // counts as a byte
	ours := func() error {
		if s.FINUnsent {
			return nil
		}
		return unix.Shutdown(fd, unix.SHUT_WR)
	}
	switch s.State {
	case CloseWait:
		return s.inject(flagFIN, s.Receive.end(), s.Send.Seq)
	case LastAck:
		return errors.Join(s.inject(flagFIN, s.Receive.end(), s.Send.Seq), ours())
	case FinWait1:
		return ours()
	case FinWait2:
		return errors.Join(ours(), s.inject(0, s.Receive.end(), s.Send.end()+fin))
	case Closing:
		return errors.Join(ours(), s.inject(flagFIN, s.Receive.end(), s.Send.Seq))
	}
	return nil
}

// reached makes sure that the socket is where it should be. Our FIN that was not
// sent yet follows in Activate.
func (s *Socket) reached(fd int) error {
	wanted := s.State
	switch {
	case s.FINUnsent && wanted == FinWait1:
		wanted = Established
	case s.FINUnsent && wanted == LastAck:
		wanted = CloseWait
	}
	i, err := readInfo(fd)
	if err == nil && i.state != wanted {
		err = fmt.Errorf("it is in %v instead of %v", i.state, wanted)
	}
	return err
}

// Activate lets a restored connection live: it says hello to the peer by a probe
// of its window, sends what was not sent before, and takes packets. It does
// nothing to a socket without a connection. What it needs of s is in its Rest. It
// may be repeated, by whoever does not know whether it was done, as long as the
// program has not used the socket.
func (r *Restorer) Activate(fd int, s *Socket) error {
	if !s.State.Connected() {
		return nil
	}
	var unsent []byte
	if s.Unsent > 0 {
		var err error
		if unsent, err = s.unsent(fd); err != nil {
			return err
		}
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_REPAIR, unix.TCP_REPAIR_OFF); err != nil {
		return fmt.Errorf("leaving repair mode: %w", err)
	}
	if err := write(fd, unsent); err != nil {
		return fmt.Errorf("sending what was not sent: %w", err)
	}
	if s.FINUnsent {
		if err := unix.Shutdown(fd, unix.SHUT_WR); err != nil && !errors.Is(err, unix.ENOTCONN) {
			return fmt.Errorf("sending FIN: %w", err)
		}
	}
	// So they are already, but for what the queues needed when they were filled.
	if send, receive := s.room(); send != s.Buffers.Send || receive != s.Buffers.Receive {
		if err := s.Buffers.Force(fd); err != nil {
			return err
		}
	}
	if err := s.Buffers.Lock(fd); err != nil {
		return err
	}
	return s.finish(fd, r.fresh(s).connected)
}

// Activate lets one live, as a Restorer does.
func Activate(fd int, s *Socket) error { return (&Restorer{}).Activate(fd, s) }

// unsent is what the socket has not been given to send yet: all of it, unless
// somebody has been there before. It leaves the socket in repair mode.
func (s *Socket) unsent(fd int) ([]byte, error) {
	if err := unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_REPAIR, unix.TCP_REPAIR_ON); err != nil {
		return nil, fmt.Errorf("entering repair mode: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_REPAIR_QUEUE, sendQueue); err != nil {
		return nil, fmt.Errorf("setting TCP_REPAIR_QUEUE: %w", err)
	}
	next, err := inet.GetInt(fd, unix.SOL_TCP, unix.TCP_QUEUE_SEQ)
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_REPAIR_QUEUE, noQueue)
	}
	if err != nil {
		return nil, fmt.Errorf("reading TCP_QUEUE_SEQ: %w", err)
	}
	missing := int(int32(s.Send.end() - next)) // a FIN counts, too
	return s.Send.Data[len(s.Send.Data)-min(max(missing, 0), s.Unsent):], nil
}

// setBuffers makes room for the queues. The kernel counts its own overhead too,
// which depends on how the data lies: a restored queue can need more than the
// original did.
func setBuffers(fd int, s *Socket) error {
	send, receive := s.room()
	return inet.Buffers{Send: send, Receive: receive}.Force(fd)
}

// room is how large they are then, in bytes.
func (s *Socket) room() (send, receive uint32) {
	return max(s.Buffers.Send, overhead*s.Send.bytes()), max(s.Buffers.Receive, overhead*s.Receive.bytes())
}

// overhead is how many bytes of buffer one of data takes at most.
const overhead = 4
