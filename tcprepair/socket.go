package tcprepair

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/tcprepair/inet"
)

// State is a state of RFC 9293, numbered as the kernel does
// (include/net/tcp_states.h).
type State uint8

// The states that a socket with a descriptor can be in. A connection in
// SYN-RECEIVED and TIME-WAIT has none, and one in SYN-SENT cannot be moved.
const (
	Established State = 1
	FinWait1    State = 4
	FinWait2    State = 5
	Closed      State = 7
	CloseWait   State = 8
	LastAck     State = 9
	Listen      State = 10
	Closing     State = 11
)

var stateNames = map[State]string{
	Established: "ESTABLISHED", FinWait1: "FIN-WAIT-1", FinWait2: "FIN-WAIT-2", Closed: "CLOSED",
	CloseWait: "CLOSE-WAIT", LastAck: "LAST-ACK", Listen: "LISTEN", Closing: "CLOSING",
}

func (s State) String() string {
	if name, ok := stateNames[s]; ok {
		return name
	}
	return fmt.Sprintf("state %d", uint8(s))
}

// Connected reports a state that has a peer.
func (s State) Connected() bool { return s != Closed && s != Listen }

// receivedFIN: the peer will send no more.
func (s State) receivedFIN() bool { return s == CloseWait || s == LastAck || s == Closing }

// shut: the program will send no more.
func (s State) shut() bool { return s == FinWait1 || s == FinWait2 || s == LastAck || s == Closing }

// A Socket is a TCP socket without a host. It is plain data, of which most is zero.
type Socket struct {
	State State          `json:",omitzero"`
	IPv6  bool           `json:",omitzero"` // of the address family AF_INET6; its addresses may be IPv4 ones all the same
	MPTCP bool           `json:",omitzero"` // a listener that would take multipath connections, as Go programs make them
	Local netip.AddrPort `json:",omitzero"` // not valid: not bound

	UID, GID uint32 `json:",omitzero"` // of who made it, or was given it: sockets of one user may share a port (SO_REUSEPORT)

	Backlog int `json:",omitzero"` // of a listener

	// Of a socket that is closed. One that never had a connection has neither.
	Ended  bool `json:",omitzero"` // it had one: what is in Receive can be read, then comes the end
	Failed bool `json:",omitzero"` // there is an error to be told first, which becomes ECONNRESET whatever it was

	// Of a connection.
	Remote     netip.AddrPort `json:",omitzero"`
	Receive    Queue          `json:",omitzero"`
	Send       Queue          `json:",omitzero"`
	Unsent     int            `json:",omitzero"` // how many bytes at the end of Send were never sent
	FINUnsent  bool           `json:",omitzero"`
	Window     Window         `json:",omitzero"`
	Negotiated Negotiated     `json:",omitzero"`
	Timestamp  uint32         `json:",omitzero"` // of this end, by the kernel's clock and the connection's offset

	Buffers inet.Buffers  `json:",omitzero"`
	Options []inet.Option `json:",omitzero"` // may be another socket's, too: not to be written to
	Own     []inet.Option `json:",omitzero"` // those of a Glance that no other connection has
	Filter  inet.Filter   `json:",omitzero"` // SO_ATTACH_FILTER
}

// A Queue is data in order. Seq is the sequence number of the first byte. Of what Rest
// returns, Skipped bytes are left out before the data.
type Queue struct {
	Seq     uint32
	Skipped uint32
	Data    []byte
}

// end is the sequence number behind the data.
func (q *Queue) end() uint32 { return q.Seq + q.bytes() }

func (q *Queue) bytes() uint32 { return q.Skipped + uint32(len(q.Data)) }

// Rest is what of a connection Resume, Arrive and Activate need to know: without what
// Restore has set for good.
func (s *Socket) Rest() *Socket {
	rest := *s
	if s.Ended { // that may all happen in Arrive
		return &rest
	}
	rest.Options = inet.TCP.Of(s.Options, inet.AtLast)
	rest.Receive = Queue{Seq: s.Receive.Seq, Skipped: uint32(len(s.Receive.Data))}
	sent := len(s.Send.Data) - s.Unsent
	rest.Send = Queue{Seq: s.Send.Seq, Skipped: uint32(sent), Data: s.Send.Data[sent:]}
	return &rest
}

// Undo is what of a socket Resume needs to know.
func (s *Socket) Undo() *Socket {
	undo := &Socket{State: s.State, Ended: s.Ended, Local: s.Local, Remote: s.Remote}
	for _, o := range s.Options {
		// Repair mode has a value of its own of one, and to read the queue changes the other.
		if o.Level == unix.SOL_SOCKET && (o.Name == unix.SO_REUSEADDR || o.Name == unix.SO_PEEK_OFF) {
			undo.Options = append(undo.Options, o)
		}
	}
	return undo
}

// Window is struct tcp_repair_window.
type Window struct {
	SendWL1        uint32 // segment that brought the last update
	SendWindow     uint32
	MaxWindow      uint32
	ReceiveWindow  uint32
	ReceiveWindowT uint32 // rcv_wup: acknowledged when the window was last advertised
}

// Negotiated is what the two ends agreed on in their SYNs.
type Negotiated struct {
	MSS          uint32
	Scaled       bool
	SendScale    uint8
	ReceiveScale uint8
	SACK         bool
	Timestamps   bool
}

// maxQueue bounds what a queue may hold: no kernel allows windows beyond 1 GiB
// (RFC 7323, 2.3).
const maxQueue = 1 << 30

// ErrInvalid says that a Socket cannot have come from Dump.
var ErrInvalid = errors.New("not a socket's state")

// Validate checks a Socket from elsewhere before anything is made of it.
func (s *Socket) Validate() error {
	if _, ok := stateNames[s.State]; !ok {
		return fmt.Errorf("%w: %v", ErrInvalid, s.State)
	}
	if err := s.validateAddresses(); err != nil {
		return err
	}
	for _, options := range [][]inet.Option{s.Options, s.Own} {
		for i := range options {
			if err := inet.TCP.Validate(&options[i]); err != nil {
				return fmt.Errorf("%w: %w", ErrInvalid, err)
			}
		}
	}
	if len(s.Filter) > unix.BPF_MAXINSNS {
		return fmt.Errorf("%w: a filter of %d instructions", ErrInvalid, len(s.Filter))
	}
	if s.Backlog < 0 || s.Backlog > 0 && s.State != Listen {
		return fmt.Errorf("%w: backlog %d in %v", ErrInvalid, s.Backlog, s.State)
	}
	switch ended := s.Ended || s.Failed; {
	case s.MPTCP && s.State != Listen:
		return fmt.Errorf("%w: MPTCP in %v", ErrInvalid, s.State)
	case ended && (s.State != Closed || !s.Local.IsValid()):
		return fmt.Errorf("%w: %v at %v after a connection", ErrInvalid, s.State, s.Local)
	case len(s.Receive.Data) > 0 && !ended && !s.State.Connected(),
		(len(s.Send.Data) > 0 || s.FINUnsent) && !s.State.Connected():
		return fmt.Errorf("%w: data in %v", ErrInvalid, s.State)
	case !s.State.Connected():
		return nil
	case s.Receive.Skipped != 0 || s.Send.Skipped != 0:
		return fmt.Errorf("%w: queues without their beginning", ErrInvalid)
	case len(s.Receive.Data) > maxQueue, len(s.Send.Data) > maxQueue:
		return fmt.Errorf("%w: queues of %d and %d bytes", ErrInvalid, len(s.Receive.Data), len(s.Send.Data))
	case s.Unsent < 0 || s.Unsent > len(s.Send.Data):
		return fmt.Errorf("%w: %d of %d bytes unsent", ErrInvalid, s.Unsent, len(s.Send.Data))
	case s.FINUnsent && s.State != FinWait1 && s.State != LastAck:
		return fmt.Errorf("%w: a FIN to be sent in %v", ErrInvalid, s.State)
	case s.Unsent > 0 && s.State.shut() && !s.FINUnsent:
		return fmt.Errorf("%w: a FIN sent before %d bytes", ErrInvalid, s.Unsent)
	case s.State == FinWait2 && len(s.Send.Data) > 0:
		return fmt.Errorf("%w: data in %v", ErrInvalid, s.State)
	case s.Negotiated.SendScale > maxScale || s.Negotiated.ReceiveScale > maxScale:
		return fmt.Errorf("%w: window scales %d and %d", ErrInvalid, s.Negotiated.SendScale, s.Negotiated.ReceiveScale)
	case s.Negotiated.MSS == 0 || s.Negotiated.MSS > maxMSS:
		return fmt.Errorf("%w: segments of %d bytes", ErrInvalid, s.Negotiated.MSS)
	}
	return nil
}

// Bounds of RFC 7323 (2.3) and of the field.
const (
	maxScale = 14
	maxMSS   = 1<<16 - 1
)

func (s *Socket) validateAddresses() error {
	for _, a := range []netip.AddrPort{s.Local, s.Remote} {
		if !a.Addr().IsValid() {
			continue
		}
		if a.Addr().Is4() == s.IPv6 {
			return fmt.Errorf("%w: address %v", ErrInvalid, a)
		}
	}
	switch connected := s.State.Connected(); {
	case (connected || s.State == Listen) && !s.Local.IsValid():
		return fmt.Errorf("%w: %v without a local address", ErrInvalid, s.State)
	case connected != s.Remote.IsValid():
		return fmt.Errorf("%w: %v with the peer %v", ErrInvalid, s.State, s.Remote)
	case connected && (s.Local.Port() == 0 || s.Remote.Port() == 0 || s.mapped() != s.Remote.Addr().Is4In6()):
		return fmt.Errorf("%w: connection of %v and %v", ErrInvalid, s.Local, s.Remote)
	}
	return nil
}

// mapped reports an IPv6 socket that talks IPv4.
func (s *Socket) mapped() bool { return s.Local.Addr().Is4In6() }
