package tcprepair

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// disconnect ends a socket's association (connect(2), AF_UNSPEC).
func disconnect(fd int) error {
	none := unix.RawSockaddr{Family: unix.AF_UNSPEC}
	_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&none)), unsafe.Sizeof(none))
	if errno != 0 {
		return errno
	}
	return nil
}
