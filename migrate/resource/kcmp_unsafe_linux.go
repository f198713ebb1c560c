package resource

import (
	"errors"
	"fmt"
	"structs"
	"unsafe"

	"golang.org/x/sys/unix"
)

const kcmpEpollTFD = 7

// epollSlot is struct kcmp_epoll_slot (include/uapi/linux/kcmp.h).
type epollSlot struct {
	_      structs.HostLayout
	epoll  uint32
	number uint32
	offset uint32
}

// isWatched reports whether fd refers to what an epoll set watches under
// number; of several under one number, to the one at occurrence.
func isWatched(pid, fd, epoll, number, occurrence int) (bool, error) {
	slot := epollSlot{epoll: uint32(epoll), number: uint32(number), offset: uint32(occurrence)}
	order, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(pid), uintptr(pid), kcmpEpollTFD, uintptr(fd), uintptr(unsafe.Pointer(&slot)), 0)
	if errors.Is(errno, unix.ENOENT) {
		return false, nil
	}
	if errno != 0 {
		return false, fmt.Errorf("comparing descriptor %d with what epoll descriptor %d watches as %d: %w", fd, epoll, number, errno)
	}
	return order == 0, nil
}
