package parasitetest

import (
	"fmt"
	"runtime"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// confined installs the filter for all threads and then is busy below it.
func confined(ready func(), stop *atomic.Bool) error {
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("prctl(PR_SET_NO_NEW_PRIVS): %w", err)
	}
	const (
		loadWord   = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		jumpEqual  = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		jumpSet    = unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K
		answer     = unix.BPF_RET | unix.BPF_K
		offsetNr   = 0
		offsetArg2 = 16 + 2*8 // of struct seccomp_data: the protection in mmap
	)
	filter := []unix.SockFilter{
		{Code: loadWord, K: offsetNr},
		{Code: jumpEqual, K: unix.SYS_GETPPID, Jt: 4},
		{Code: jumpEqual, K: unix.SYS_MMAP, Jf: 2},
		{Code: loadWord, K: offsetArg2},
		{Code: jumpSet, K: unix.PROT_EXEC, Jt: 1},
		{Code: answer, K: unix.SECCOMP_RET_ALLOW},
		{Code: answer, K: unix.SECCOMP_RET_KILL_PROCESS},
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	const setModeFilter, allThreads = 1, 1
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, setModeFilter, allThreads, uintptr(unsafe.Pointer(&program))); errno != 0 {
		return fmt.Errorf("seccomp: %w", errno)
	}
	runtime.UnlockOSThread()
	return busy(ready, stop)
}
