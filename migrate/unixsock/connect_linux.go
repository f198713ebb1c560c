package unixsock

import (
	"errors"
	"fmt"
	"io/fs"
	"path"

	"golang.org/x/sys/unix"
)

// Connect connects a socket to the name of another one, as State.Name has it.
func Connect(fd int, name []byte) error {
	if err := connectTo(fd, name); err != nil {
		return fmt.Errorf("connecting to the unix socket %q: %w", name, err)
	}
	return nil
}

// Disconnect ends the connection of a datagram socket.
func Disconnect(fd int) error {
	if err := disconnect(fd); err != nil {
		return fmt.Errorf("ending the connection of a unix socket: %w", err)
	}
	return nil
}

// ConnectTo connects a socket to another one that has a name and a descriptor of ours. Nobody
// else needs to find that: it may be staged, or its file removed. It needs CAP_NET_ADMIN.
func ConnectTo(fd, other int) error {
	file, err := unix.IoctlRetInt(other, siocUnixFile)
	if errors.Is(err, fs.ErrNotExist) { // an abstract name
		var st unix.Stat_t
		if err := unix.Fstat(other, &st); err != nil {
			return fmt.Errorf("looking at a unix socket: %w", err)
		}
		state, err := Look(uint32(st.Ino))
		if err != nil {
			return err
		}
		return Connect(fd, state.Name)
	}
	if err != nil {
		return fmt.Errorf("asking for the file of a unix socket: %w", err)
	}
	defer unix.Close(file)
	return Connect(fd, []byte(path.Join("/proc/self/fd", fmt.Sprint(file))))
}
