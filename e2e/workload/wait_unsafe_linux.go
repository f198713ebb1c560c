package main

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

const futexWaitPrivate = 0x80 // FUTEX_WAIT | FUTEX_PRIVATE_FLAG (include/uapi/linux/futex.h)

// futexWait waits for a wake-up of word, which must be 0, for at most as long
// as timeout says.
func futexWait(word *uint32, timeout *unix.Timespec) error {
	_, _, errno := unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(word)), futexWaitPrivate, 0, uintptr(unsafe.Pointer(timeout)), 0, 0)
	return wrong(errno)
}

// sigTimedWait waits for a signal that is blocked.
func sigTimedWait(signal unix.Signal, timeout *unix.Timespec) error {
	set := uint64(1) << (signal - 1)
	_, _, errno := unix.Syscall6(unix.SYS_RT_SIGTIMEDWAIT, uintptr(unsafe.Pointer(&set)), 0, uintptr(unsafe.Pointer(timeout)), unsafe.Sizeof(set), 0, 0)
	return wrong(errno)
}

func wrong(errno unix.Errno) error {
	if errno != 0 {
		return errno
	}
	return nil
}

// plainPoll is poll(2) itself, which the library makes of ppoll(2).
func plainPoll(fd, ms int) (int, error) {
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, _, errno := unix.Syscall(unix.SYS_POLL, uintptr(unsafe.Pointer(unsafe.SliceData(poll))), 1, uintptr(ms))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
