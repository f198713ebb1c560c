package procfs

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

func sleepIn(nr uintptr, ts *unix.Timespec, flags uintptr) {
	_, _, _ = unix.Syscall(nr, uintptr(unsafe.Pointer(ts)), flags, 0)
}

func sleepInEpoll(fd, ms int) {
	set, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return
	}
	defer unix.Close(set)
	if unix.EpollCtl(set, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN}) == nil {
		_, _ = unix.EpollWait(set, make([]unix.EpollEvent, 1), ms)
	}
}

func waitForWord(word *uint32, ts *unix.Timespec) {
	const futexWait = 0
	_, _, _ = unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(word)), futexWait, 0, uintptr(unsafe.Pointer(ts)), 0, 0)
}
