package acceptqueue

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/tcprepair"
	"github.com/pagurus-project/pagurus/tcprepair/inet"
)

// listening is what Put needs to know of a listener.
type listening struct {
	port             uint16
	device           uint32 // that it is bound to; 0: none
	waiting, backlog uint32 // one more than the backlog may wait
}

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
	l.waiting, l.backlog = binary.NativeEndian.Uint32(raw[24:]), binary.NativeEndian.Uint32(raw[28:])
	if l.device, err = inet.GetInt(fd, unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX); err != nil {
		return l, fmt.Errorf("reading SO_BINDTOIFINDEX: %w", err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return l, err
	}
	l.port = endpoint(name).Port()
	return l, nil
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

// shared sets whether a port may have more listeners.
func shared(listener int, value uint32) error {
	if err := inet.SetInt(listener, unix.SOL_SOCKET, unix.SO_REUSEPORT, value); err != nil {
		return fmt.Errorf("setting SO_REUSEPORT: %w", err)
	}
	return nil
}
