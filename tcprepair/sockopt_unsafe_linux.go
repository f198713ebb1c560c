package tcprepair

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// getsockopt is getsockopt(2) for a value of up to most bytes.
func getsockopt(fd, level, name, most int) ([]byte, error) {
	value := make([]byte, most)
	length := uint32(most)
	_, _, errno := unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name),
		uintptr(unsafe.Pointer(unsafe.SliceData(value))), uintptr(unsafe.Pointer(&length)), 0)
	if errno != 0 {
		return nil, errno
	}
	return value[:min(int(length), most)], nil
}

// filter reads SO_GET_FILTER, which counts in instructions.
func filter(fd int) (Filter, error) {
	for most := 0; ; {
		program := make(Filter, most)
		n := uint32(most)
		_, _, errno := unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
			uintptr(unsafe.Pointer(unsafe.SliceData(program))), uintptr(unsafe.Pointer(&n)), 0)
		switch {
		case errno != 0:
			return nil, errno
		case int(n) <= most:
			return program[:n], nil
		}
		most = int(n)
	}
}

func attachFilter(fd int, f Filter) error {
	program := unix.SockFprog{Len: uint16(len(f)), Filter: (*unix.SockFilter)(unsafe.Pointer(unsafe.SliceData(f)))}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &program)
}

// disconnect ends a socket's association (connect(2), AF_UNSPEC).
func disconnect(fd int) error {
	none := unix.RawSockaddr{Family: unix.AF_UNSPEC}
	_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&none)), unsafe.Sizeof(none))
	if errno != 0 {
		return errno
	}
	return nil
}
