package resource

import "golang.org/x/sys/unix"

// Kinds of kcmp(2).
const (
	kcmpFile    = 0
	kcmpVM      = 1
	kcmpFiles   = 2
	kcmpFS      = 3
	kcmpSighand = 4
)

// kcmp compares a resource of two processes: 0 says that it is the same one,
// 1 and 2 that the first is less or greater in an order of the kernel's.
func kcmp(pid1, pid2, kind, idx1, idx2 int) (int, error) {
	order, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(pid1), uintptr(pid2), uintptr(kind), uintptr(idx1), uintptr(idx2), 0)
	if errno != 0 {
		return 0, errno
	}
	return int(order), nil
}
