package parasitetest

import (
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// These make the system call itself, without the retry on EINTR that a library
// might add.

func rtSigtimedwait(set uint64, timeout time.Duration) error {
	ts := unix.NsecToTimespec(int64(timeout))
	_, _, errno := unix.Syscall6(unix.SYS_RT_SIGTIMEDWAIT, uintptr(unsafe.Pointer(&set)), 0, uintptr(unsafe.Pointer(&ts)), 8, 0, 0)
	return asError(errno)
}

func futexWait(word *uint32, timeout time.Duration) error {
	const futexWaitPrivate = 128
	ts := unix.NsecToTimespec(int64(timeout))
	_, _, errno := unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(word)), futexWaitPrivate, 0, uintptr(unsafe.Pointer(&ts)), 0, 0)
	return asError(errno)
}

func newSemaphore() (uintptr, error) {
	const ipcPrivate = 0
	id, _, errno := unix.Syscall(unix.SYS_SEMGET, ipcPrivate, 1, 0o600)
	return id, asError(errno)
}

func semaphoreWait(id uintptr, timeout time.Duration) error {
	operation := struct {
		number uint16
		op     int16
		flags  int16
	}{op: -1}
	ts := unix.NsecToTimespec(int64(timeout))
	_, _, errno := unix.Syscall6(unix.SYS_SEMTIMEDOP, id, uintptr(unsafe.Pointer(&operation)), 1, uintptr(unsafe.Pointer(&ts)), 0, 0)
	return asError(errno)
}

func removeSemaphore(id uintptr) {
	const ipcRemove = 0
	_, _, _ = unix.Syscall(unix.SYS_SEMCTL, id, 0, ipcRemove)
}

func asError(errno unix.Errno) error {
	if errno == 0 {
		return nil
	}
	return errno
}
