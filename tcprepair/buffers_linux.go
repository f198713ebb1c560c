package tcprepair

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// readBuffers reads the sizes of the buffers.
func readBuffers(fd int) (Buffers, error) {
	var b Buffers
	var err error
	if b.Send, err = getInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF); err != nil {
		return b, fmt.Errorf("reading SO_SNDBUF: %w", err)
	}
	if b.Receive, err = getInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF); err != nil {
		return b, fmt.Errorf("reading SO_RCVBUF: %w", err)
	}
	if b.Locks, err = getInt(fd, unix.SOL_SOCKET, unix.SO_BUF_LOCK); err != nil {
		return b, fmt.Errorf("reading SO_BUF_LOCK: %w", err)
	}
	return b, nil
}

// Bits of SO_BUF_LOCK (include/uapi/linux/socket.h): a program has chosen the
// size, the kernel leaves it alone.
const (
	sendLocked    = 1
	receiveLocked = 2
)

// setBuffers makes room for the queues. The kernel counts its own overhead too,
// which depends on how the data lies: a restored queue can need more than the
// original did.
func setBuffers(fd int, s *Socket) error {
	send := max(s.Buffers.Send, overhead*uint32(len(s.Send.Data)))
	receive := max(s.Buffers.Receive, overhead*uint32(len(s.Receive.Data)))
	return forceBuffers(fd, send, receive)
}

// overhead is how many bytes of buffer one of data takes at most.
const overhead = 4

func forceBuffers(fd int, send, receive uint32) error {
	// The kernel doubles what it is given (socket(7)).
	if err := setInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, send/2); err != nil {
		return fmt.Errorf("setting SO_SNDBUF: %w", err)
	}
	if err := setInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receive/2); err != nil {
		return fmt.Errorf("setting SO_RCVBUF: %w", err)
	}
	return nil
}

// settleBuffers gives buffers that a program has chosen their size, and leaves
// the others to the kernel.
func settleBuffers(fd int, b Buffers) error {
	have, err := readBuffers(fd)
	if err != nil {
		return err
	}
	if have.Send != b.Send || have.Receive != b.Receive {
		if err := forceBuffers(fd, b.Send, b.Receive); err != nil {
			return err
		}
		have.Locks = sendLocked | receiveLocked
	}
	if have.Locks == b.Locks {
		return nil
	}
	if err := setInt(fd, unix.SOL_SOCKET, unix.SO_BUF_LOCK, b.Locks); err != nil {
		return fmt.Errorf("setting SO_BUF_LOCK: %w", err)
	}
	return nil
}
