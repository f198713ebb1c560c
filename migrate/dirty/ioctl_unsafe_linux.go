package dirty

import (
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

func openAPI(uffd int, arg *uffdioAPIArg) error {
	return ioctl(uffd, uffdioAPI, unsafe.Pointer(arg))
}

func register(uffd int, r Range) error {
	arg := uffdioRegisterArg{start: r.Start, length: r.Bytes(), mode: uffdRegisterModeWP}
	return ioctl(uffd, uffdioRegister, unsafe.Pointer(&arg))
}

// scanOnce fills vec and returns how many of its elements it has filled.
func scanOnce(pagemap *os.File, arg *scanArg, vec []pageRegion) (int, error) {
	var pin runtime.Pinner
	pin.Pin(&vec[0])
	defer pin.Unpin()
	arg.size = uint64(unsafe.Sizeof(*arg))
	arg.vec = uint64(uintptr(unsafe.Pointer(&vec[0])))
	arg.vecLen = uint64(len(vec))
	for {
		n, _, errno := unix.Syscall(unix.SYS_IOCTL, pagemap.Fd(), pagemapScan, uintptr(unsafe.Pointer(arg)))
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
			continue
		}
		return 0, errno
	}
}

func ioctl(fd int, request uintptr, arg unsafe.Pointer) error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg))
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
			continue
		}
		return errno
	}
}

// addressOf is where a byte slice lies.
func addressOf(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) }
