package unixsock

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Accept accepts the connection of a client that has connected to the listener already, and of
// nobody else: who has been there before is turned away. Descriptors are of this process, which
// has to be in the sockets' network namespace.
func Accept(listener, client int) (int, error) {
	var st unix.Stat_t
	if err := unix.Fstat(client, &st); err != nil {
		return -1, fmt.Errorf("looking at a unix socket: %w", err)
	}
	for { // connections are accepted in their order, so it comes
		fd, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return -1, fmt.Errorf("accepting a connection of a unix socket: %w", err)
		}
		ours, err := isConnectedTo(fd, uint32(st.Ino))
		if ours && err == nil {
			return fd, nil
		}
		if err = errors.Join(err, unix.Close(fd)); err != nil {
			return -1, err
		}
	}
}

// isConnectedTo reports whether the other end of a connection is the socket with this inode.
func isConnectedTo(fd int, inode uint32) (bool, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return false, fmt.Errorf("looking at a unix socket: %w", err)
	}
	s, err := Look(uint32(st.Ino))
	return err == nil && s.Peer == inode, err
}
