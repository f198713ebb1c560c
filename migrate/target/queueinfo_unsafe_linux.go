package target

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// queueInfo makes rt_sigqueueinfo or rt_tgsigqueueinfo, whose last argument is
// the siginfo (128 bytes).
func queueInfo(nr uintptr, info []byte, args ...uintptr) error {
	var a [3]uintptr
	copy(a[:], args)
	pointer := uintptr(unsafe.Pointer(&info[0]))
	var errno unix.Errno
	if len(args) == 2 {
		_, _, errno = unix.Syscall(nr, a[0], a[1], pointer)
	} else {
		_, _, errno = unix.Syscall6(nr, a[0], a[1], a[2], pointer, 0, 0)
	}
	if errno != 0 {
		return errno
	}
	return nil
}
