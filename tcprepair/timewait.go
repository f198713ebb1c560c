package tcprepair

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/tcprepair/inet"
)

// A TimeWait is what the kernel keeps of a connection that a program has closed first, and that
// no process has any more: struct tcp_timewait_sock (include/linux/tcp.h). It is plain data.
type TimeWait struct {
	_             struct{} `cbor:",toarray"` // there are many
	Local, Remote netip.AddrPort
	IPv6          bool // of the address family AF_INET6
	FinWait       bool // in FIN-WAIT-2: the peer's FIN is still to come
	Reuse         bool // SO_REUSEADDR

	SendNext, ReceiveNext uint32 // sequence numbers; a FIN counts
	Window                uint32 // that was offered to the peer, in bytes
	ReceiveScale          uint8

	Timestamps bool   // were agreed on
	Recent     uint32 // the peer's last one
	Timestamp  uint32 // of this end when it was read, as TCP_TIMESTAMP tells it

	Mark, Priority uint32 // of what is answered (SO_MARK, SO_PRIORITY)
	TOS            uint8  // the traffic class of IPv6
	Left           time.Duration
}

// ErrConnected says that the host has another connection of the same two ends: a time-wait is
// over when it begins.
var ErrConnected = errors.New("there is such a connection already")

// Bounds of what the kernel lets be in these states (TCP_TIMEWAIT_LEN, include/net/tcp.h).
const longestWait = time.Minute

// Validate checks one from elsewhere.
func (w *TimeWait) Validate() error {
	if w.Left < 0 || w.Left > 24*time.Hour {
		return fmt.Errorf("%w: %v left", ErrInvalid, w.Left)
	}
	return w.before().Validate()
}

// before is the connection before it was closed, when the peer has not acknowledged our FIN.
func (w *TimeWait) before() *Socket {
	const some = 64 << 10
	s := &Socket{
		State: FinWait1, IPv6: w.IPv6, Local: w.Local, Remote: w.Remote,
		Send: Queue{Seq: w.SendNext - 1}, Receive: Queue{Seq: w.ReceiveNext - 1},
		Negotiated: Negotiated{MSS: 536, Scaled: w.ReceiveScale > 0, ReceiveScale: w.ReceiveScale, Timestamps: w.Timestamps},
		Timestamp:  w.Timestamp,
		Buffers:    inet.Buffers{Send: some, Receive: some},
	}
	if w.FinWait {
		s.Receive.Seq = w.ReceiveNext
	}
	s.Window = Window{
		SendWL1: s.Receive.Seq, SendWindow: maxUserMSS, MaxWindow: maxUserMSS,
		ReceiveWindow: max(w.Window, 1) + 1, ReceiveWindowT: s.Receive.Seq,
	}
	option := func(level, name int, value uint32) {
		if value != 0 {
			s.Options = append(s.Options, inet.Option{Level: level, Name: name, Value: binary.NativeEndian.AppendUint32(nil, value)})
		}
	}
	option(unix.SOL_SOCKET, unix.SO_MARK, w.Mark)
	if w.IPv6 {
		option(unix.SOL_IPV6, unix.IPV6_TCLASS, uint32(w.TOS))
	}
	if !w.IPv6 || w.Local.Addr().Is4In6() {
		option(unix.SOL_IP, unix.IP_TOS, uint32(w.TOS))
	}
	return s
}
