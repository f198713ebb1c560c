package tcprepair

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/tcprepair/inet"
)

// RestoreTimeWait makes one on this host, which has its local address. What the kernel does not let be
// set begins anew: a connection that has ended waits for a minute, however much of that was over. Another
// connection of the same two ends is left alone: ErrConnected.
//
// A socket is closed on both sides, in the peer's name too:
//
//	FIN-WAIT-1 ──acknowledgement──▶ FIN-WAIT-2 ──close(2)──▶ time-wait socket in FIN-WAIT-2
//	    └──FIN──▶ CLOSING ──acknowledgement──▶ time-wait socket in TIME-WAIT
//
// The kernel answers that FIN, and nothing else (tcp_fin, net/ipv4/tcp_input.c). The answer has Mute for
// its priority: who calls has such packets dropped (hold.DropStrays does). It is the only one that would leave
// the host.
//
// The caller needs CAP_NET_ADMIN and CAP_NET_RAW.
func (r *Restorer) RestoreTimeWait(w *TimeWait) (err error) {
	if err := w.Validate(); err != nil {
		return err
	}
	s := w.before()
	fd, err := r.Restore(s, true)
	if errors.Is(err, unix.EADDRNOTAVAIL) {
		return ErrConnected
	}
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("restoring the end of the connection of %v and %v: %w", w.Local, w.Remote, err)
		}
		err = errors.Join(err, unix.Close(fd))
	}()
	if w.FinWait {
		return w.wait(fd, s)
	}
	return w.end(fd, s)
}

// setReuse sets what repair mode has a value of its own for.
func (w *TimeWait) setReuse(fd int) error {
	value := 0
	if w.Reuse {
		value = 1
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, value); err != nil {
		return fmt.Errorf("setting SO_REUSEADDR: %w", err)
	}
	return nil
}

// wait leaves a socket to the kernel that waits for the peer's FIN, when it is closed (tcp_close,
// net/ipv4/tcp.c).
func (w *TimeWait) wait(fd int, s *Socket) error {
	if err := w.say(fd, s, segment{seq: w.ReceiveNext, ack: w.SendNext}, FinWait2); err != nil {
		return err
	}
	seconds := (min(w.Left, longestWait) + time.Second - 1) / time.Second
	if err := unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_LINGER2, int(max(seconds, 1))); err != nil {
		return fmt.Errorf("setting TCP_LINGER2: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_REPAIR, unix.TCP_REPAIR_OFF_NO_WP); err != nil {
		return fmt.Errorf("leaving repair mode: %w", err)
	}
	return errors.Join(setPriority(fd, w.Priority), w.setReuse(fd))
}

// end brings a socket to its end.
func (w *TimeWait) end(fd int, s *Socket) error {
	if err := setPriority(fd, Mute); err != nil {
		return err
	}
	if err := w.say(fd, s, segment{seq: w.ReceiveNext - 1, ack: w.SendNext - 1, flags: flagFIN}, Closing); err != nil {
		return err
	}
	if err := errors.Join(setPriority(fd, w.Priority), w.setReuse(fd)); err != nil {
		return err
	}
	return w.say(fd, s, segment{seq: w.ReceiveNext, ack: w.SendNext}, Closed)
}

func setPriority(fd int, priority uint32) error {
	if err := inet.SetInt(fd, unix.SOL_SOCKET, unix.SO_PRIORITY, priority); err != nil {
		return fmt.Errorf("setting SO_PRIORITY: %w", err)
	}
	return nil
}

// sayTakes is how long a segment may take by the loopback device on a host with much to do.
const sayTakes = 500 * time.Millisecond

// say sends a segment in the peer's name, and waits for the state that it leads to.
func (w *TimeWait) say(fd int, s *Socket, g segment, to State) error {
	if w.Timestamps {
		g.stamps = &stamps{value: w.Recent, echo: w.Timestamp}
	}
	if err := s.say(g); err != nil {
		return err
	}
	for deadline := time.Now().Add(sayTakes); ; <-time.After(time.Millisecond) {
		i, err := readInfo(fd)
		if err != nil || i.state == to {
			return err
		}
		if i.state == Closed || time.Now().After(deadline) {
			return fmt.Errorf("it is in %v instead of %v", i.state, to)
		}
	}
}
