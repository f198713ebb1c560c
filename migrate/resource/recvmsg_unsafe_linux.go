package resource

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// received is what recvmsg(2) tells beside the data.
type received struct {
	bytes, control int
	flags          int
	from           []byte // the sender's name as the kernel has it; unix.Recvmsg cuts abstract ones
}

// receive is recvmsg(2) from a unix socket.
func receive(fd int, data, control []byte, flags int) (r received, err error) {
	var from unix.RawSockaddrUnix
	vector := unix.Iovec{Base: unsafe.SliceData(data)}
	vector.SetLen(len(data))
	header := unix.Msghdr{
		Name: (*byte)(unsafe.Pointer(&from)), Namelen: uint32(unsafe.Sizeof(from)),
		Iov: &vector, Iovlen: 1, Control: unsafe.SliceData(control),
	}
	header.SetControllen(len(control))
	n, _, errno := unix.Syscall(unix.SYS_RECVMSG, uintptr(fd), uintptr(unsafe.Pointer(&header)), uintptr(flags))
	if errno != 0 {
		return r, errno
	}
	r.bytes, r.control, r.flags = int(n), int(header.Controllen), int(header.Flags)
	if length := int(header.Namelen) - int(unsafe.Offsetof(from.Path)); length > 0 {
		name := unsafe.Slice((*byte)(unsafe.Pointer(&from.Path[0])), len(from.Path))[:min(length, len(from.Path))]
		if name[0] != 0 { // a path ends before the NUL that the kernel puts behind it
			for i, c := range name {
				if c == 0 {
					name = name[:i]
					break
				}
			}
		}
		r.from = append(r.from, name...)
	}
	return r, nil
}
