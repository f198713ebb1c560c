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
