package procfs

import (
	"runtime"
	"structs"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// linkCreate is the part of union bpf_attr for BPF_LINK_CREATE
// (include/uapi/linux/bpf.h), as far as iterators use it.
type linkCreate struct {
	_           structs.HostLayout
	programFD   uint32
	targetFD    uint32
	attachType  uint32
	flags       uint32
	iterInfo    uint64
	iterInfoLen uint32
	_           uint32
}

func createIteratorLink[T any](program int, info *T) (int, error) {
	var pin runtime.Pinner
	pin.Pin(info)
	defer pin.Unpin()
	attr := linkCreate{
		programFD:   uint32(program),
		attachType:  uint32(ebpf.AttachTraceIter),
		iterInfo:    uint64(uintptr(unsafe.Pointer(info))),
		iterInfoLen: uint32(unsafe.Sizeof(*info)),
	}
	fd, _, errno := unix.Syscall(unix.SYS_BPF, bpfLinkCreate, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	if errno != 0 {
		return 0, errno
	}
	return int(fd), nil
}

func createIterator(link int) (int, error) {
	attr := struct{ linkFD, flags uint32 }{linkFD: uint32(link)}
	fd, _, errno := unix.Syscall(unix.SYS_BPF, bpfIterCreate, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	if errno != 0 {
		return 0, errno
	}
	return int(fd), nil
}
