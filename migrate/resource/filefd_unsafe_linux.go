package resource

import (
	"structs"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate/image"
)

// ownerABI is struct f_owner_ex (include/uapi/asm-generic/fcntl.h).
type ownerABI struct {
	_   structs.HostLayout
	typ int32
	id  int32
}

const (
	fSetOwnEx = 15
	fGetOwnEx = 16
)

func fileOwner(fd int) (image.Owner, error) {
	var abi ownerABI
	if _, _, errno := unix.Syscall(unix.SYS_FCNTL, uintptr(fd), fGetOwnEx, uintptr(unsafe.Pointer(&abi))); errno != 0 {
		return image.Owner{}, errno
	}
	return image.Owner{Type: int(abi.typ), ID: int(abi.id)}, nil
}

func setFileOwner(fd int, o *image.Owner) error {
	if o.ID == 0 {
		return nil
	}
	abi := ownerABI{typ: int32(o.Type), id: int32(o.ID)}
	if _, _, errno := unix.Syscall(unix.SYS_FCNTL, uintptr(fd), fSetOwnEx, uintptr(unsafe.Pointer(&abi))); errno != 0 {
		return errno
	}
	return nil
}

// ioctlSet makes an ioctl whose argument points to v.
func ioctlSet[T any](fd int, request uintptr, v *T) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(unsafe.Pointer(v))); errno != 0 {
		return errno
	}
	return nil
}

// hasFilter reports whether a socket has a filter, of classic BPF or, which cannot
// be read, of another kind (sk_get_filter, net/core/filter.c).
func hasFilter(fd int) (bool, error) {
	var instructions uint32 // 0 in: only their number is asked for
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, 0, uintptr(unsafe.Pointer(&instructions)), 0)
	switch errno {
	case 0:
		return instructions > 0, nil
	case unix.EACCES:
		return true, nil
	}
	return false, errno
}
