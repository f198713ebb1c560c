package unixsock

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// bind gives a socket these bytes as its name. unix.Bind takes a path that begins
// with "@" for an abstract name, and none that fills sun_path.
func bind(fd int, name []byte) error { return byName(unix.SYS_BIND, fd, name) }

// connectTo connects it to the one with these bytes as its name.
func connectTo(fd int, name []byte) error { return byName(unix.SYS_CONNECT, fd, name) }

// disconnect ends a datagram socket's association (connect(2), AF_UNSPEC).
func disconnect(fd int) error {
	none := unix.RawSockaddr{Family: unix.AF_UNSPEC}
	if _, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&none)), unsafe.Sizeof(none)); errno != 0 {
		return errno
	}
	return nil
}

func byName(call uintptr, fd int, name []byte) error {
	if len(name) == 0 || len(name) > maxNameBytes {
		return fmt.Errorf("a name of %d bytes: %w", len(name), unix.EINVAL) // none at all would be unix_autobind
	}
	address := unix.RawSockaddrUnix{Family: unix.AF_UNIX}
	for i, c := range name {
		address.Path[i] = int8(c)
	}
	size := unsafe.Offsetof(address.Path) + uintptr(len(name))
	if _, _, errno := unix.Syscall(call, uintptr(fd), uintptr(unsafe.Pointer(&address)), size); errno != 0 {
		return errno
	}
	return nil
}
