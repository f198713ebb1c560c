package tcprepair

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/tcprepair/inet"
)

// end makes a socket that has had a connection. Whom with, nobody can ask it any
// more; here it is a peer of ours that says nothing.
func (s *Socket) end(fd int) (err error) {
	peer, err := s.mute()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Close(peer)) }()
	former, err := s.former(peer)
	if err != nil {
		return err
	}
	if s.Failed {
		former.State = Established
	}
	if err := former.establish(fd); err != nil {
		return err
	}
	if err := former.equip(fd, false, nil); err != nil {
		return err
	}
	if s.Failed {
		err = former.inject(flagRST, former.Receive.end(), former.Send.Seq)
	} else {
		err = former.inject(0, former.Receive.end()+1, former.Send.end()+1)
	}
	if err != nil {
		return err
	}
	if err := s.reached(fd); err != nil {
		return err
	}
	return s.leaveRepair(fd)
}

// endLate does the same to a socket that was restored early, unless it is done.
func (s *Socket) endLate(fd int) error {
	i, err := readInfo(fd)
	if err != nil {
		return err
	}
	if i.state != Closed { // somebody did not come to the end of this
		if err := disconnect(fd); err != nil {
			return fmt.Errorf("starting over: %w", err)
		}
		return s.end(fd)
	}
	var have Socket
	if err := have.lookClosed(fd); err != nil || have.Ended {
		return errors.Join(err, s.leaveRepair(fd))
	}
	return s.end(fd)
}

// former is the connection, shortly before its end.
func (s *Socket) former(peer int) (*Socket, error) {
	former := *s
	former.State = LastAck
	former.Negotiated.MSS = maxUserMSS
	former.Receive.Seq, former.Send.Seq = 1, 1
	former.Window = Window{MaxWindow: maxUserMSS, ReceiveWindow: maxUserMSS, ReceiveWindowT: 1}
	name, err := unix.Getsockname(peer)
	if err == nil {
		former.Remote, err = inet.Endpoint(name)
	}
	return &former, err
}

// mute makes a peer on this host that neither answers nor sends: without one the
// host itself would answer with a reset.
func (s *Socket) mute() (fd int, err error) {
	other := Socket{IPv6: s.IPv6}
	if fd, err = other.socket(); err != nil {
		return -1, err
	}
	err = func() error {
		if err := unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_REPAIR, unix.TCP_REPAIR_ON); err != nil {
			return fmt.Errorf("entering repair mode: %w", err)
		}
		if err := (inet.Filter{unix.BPF_RET | unix.BPF_K}).Attach(fd); err != nil { // takes nothing
			return fmt.Errorf("attaching a filter: %w", err)
		}
		to, err := inet.Sockaddr(s.Local, s.IPv6)
		if err != nil {
			return err
		}
		return unix.Connect(fd, to)
	}()
	if err != nil {
		return -1, errors.Join(fmt.Errorf("making a peer: %w", err), unix.Close(fd))
	}
	return fd, nil
}
