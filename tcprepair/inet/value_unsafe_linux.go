package inet

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Get is getsockopt(2) for a value of up to most bytes.
func Get(fd, level, name, most int) ([]byte, error) {
	return Ask(fd, level, name, make([]byte, most))
}

// Ask is Get where the value says what is asked for; the answer takes its place.
func Ask(fd, level, name int, value []byte) ([]byte, error) {
	length := uint32(len(value))
	_, _, errno := unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name),
		uintptr(unsafe.Pointer(unsafe.SliceData(value))), uintptr(unsafe.Pointer(&length)), 0)
	if errno != 0 {
		return nil, errno
	}
	return value[:min(int(length), len(value))], nil
}

// A Filter is a program of classic BPF (SO_ATTACH_FILTER), each instruction eight bytes
// as struct sock_filter has them. An empty one is none.
type Filter []uint64

// ReadFilter reads that of a socket (SO_GET_FILTER counts in instructions). One of eBPF cannot
// be read: ErrUnsupported, for what the socket is.
func ReadFilter(fd int, what string) (Filter, error) {
	for most := 0; ; {
		program := make(Filter, most)
		n := uint32(most)
		_, _, errno := unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
			uintptr(unsafe.Pointer(unsafe.SliceData(program))), uintptr(unsafe.Pointer(&n)), 0)
		switch {
		case errno != 0 && Unknown(errno): // it can have none
			return nil, nil
		case errno == unix.EACCES:
			return nil, fmt.Errorf("%s with a BPF filter (SO_ATTACH_BPF), which cannot be read, %w", what, ErrUnsupported)
		case errno != 0:
			return nil, fmt.Errorf("reading the filter: %w", errno)
		case int(n) <= most:
			return program[:n], nil
		}
		most = int(n)
	}
}

// Attach gives it to a socket.
func (f Filter) Attach(fd int) error {
	program := unix.SockFprog{Len: uint16(len(f)), Filter: (*unix.SockFilter)(unsafe.Pointer(unsafe.SliceData(f)))}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &program)
}
