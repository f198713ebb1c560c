package inet

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Buffers are the sizes of both, in bytes as getsockopt(2) tells them, and
// SO_BUF_LOCK.
type Buffers struct{ Send, Receive, Locks uint32 }

// ReadBuffers reads those of a socket.
func ReadBuffers(fd int) (Buffers, error) {
	var b Buffers
	var err error
	if b.Send, err = GetInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF); err != nil {
		return b, fmt.Errorf("reading SO_SNDBUF: %w", err)
	}
	if b.Receive, err = GetInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF); err != nil {
		return b, fmt.Errorf("reading SO_RCVBUF: %w", err)
	}
	if b.Locks, err = GetInt(fd, unix.SOL_SOCKET, unix.SO_BUF_LOCK); err != nil {
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

// Force sets both sizes, whatever the limits are (SO_SNDBUFFORCE).
func (b Buffers) Force(fd int) error {
	// The kernel doubles what it is given (socket(7)).
	if err := SetInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, b.Send/2); err != nil {
		return fmt.Errorf("setting SO_SNDBUF: %w", err)
	}
	if err := SetInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, b.Receive/2); err != nil {
		return fmt.Errorf("setting SO_RCVBUF: %w", err)
	}
	return nil
}

// Settle gives buffers that a program has chosen their size, and leaves
// the others to the kernel.
func (b Buffers) Settle(fd int) error {
	have, err := ReadBuffers(fd)
	if err != nil {
		return err
	}
	if have.Send != b.Send || have.Receive != b.Receive {
		if err := b.Force(fd); err != nil {
			return err
		}
		have.Locks = sendLocked | receiveLocked
	}
	if have.Locks == b.Locks {
		return nil
	}
	return b.Lock(fd)
}

// Lock says which of them a program has chosen.
func (b Buffers) Lock(fd int) error {
	if err := SetInt(fd, unix.SOL_SOCKET, unix.SO_BUF_LOCK, b.Locks); err != nil {
		return fmt.Errorf("setting SO_BUF_LOCK: %w", err)
	}
	return nil
}
