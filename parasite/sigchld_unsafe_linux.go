package parasite

import (
	"structs"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sigactionABI is struct sigaction as rt_sigaction(2) knows it.
type sigactionABI struct {
	_        structs.HostLayout
	handler  uintptr
	flags    uint64
	restorer uintptr
	mask     uint64
}

const noChildStop = 1 // SA_NOCLDSTOP (include/uapi/asm-generic/signal-defs.h)

// noStopSignals has this process hear of its children's ends only. It would get
// SIGCHLD for each stop of what it traces (sigaction(2), SA_NOCLDSTOP), and with
// Go's handler, which wakes a thread, that is most of what a remote call costs.
// Should it fail, they cost that.
var noStopSignals = sync.OnceFunc(func() {
	var action sigactionABI
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(unix.SIGCHLD), 0, uintptr(unsafe.Pointer(&action)), sigSetBytes, 0, 0)
	if errno != 0 {
		return
	}
	action.flags |= noChildStop
	_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(unix.SIGCHLD), uintptr(unsafe.Pointer(&action)), 0, sigSetBytes, 0, 0)
})
