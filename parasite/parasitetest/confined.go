package parasitetest

import (
	"fmt"
	"runtime"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	loadWord   = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
	jumpEqual  = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
	jumpSet    = unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K
	answer     = unix.BPF_RET | unix.BPF_K
	offsetNr   = 0
	offsetArg2 = 16 + 2*8 // of struct seccomp_data: the protection in mmap
)

// confined is busy below its filter.
func confined(ready func(), stop *atomic.Bool) error {
	err := filter([]unix.SockFilter{
		{Code: loadWord, K: offsetNr},
		{Code: jumpEqual, K: unix.SYS_GETPPID, Jt: 4},
		{Code: jumpEqual, K: unix.SYS_MMAP, Jf: 2},
		{Code: loadWord, K: offsetArg2},
		{Code: jumpSet, K: unix.PROT_EXEC, Jt: 1},
		{Code: answer, K: unix.SECCOMP_RET_ALLOW},
		{Code: answer, K: unix.SECCOMP_RET_KILL_PROCESS},
	})
	if err != nil {
		return err
	}
	return busy(ready, stop)
}

// guarded is steady below its filter.
func guarded(ready func(), stop *atomic.Bool) error {
	err := filter([]unix.SockFilter{
		{Code: loadWord, K: offsetNr},
		{Code: jumpEqual, K: unix.SYS_TKILL, Jt: 1},
		{Code: answer, K: unix.SECCOMP_RET_ALLOW},
		{Code: answer, K: unix.SECCOMP_RET_KILL_PROCESS},
	})
	if err != nil {
		return err
	}
	return steady(ready, stop)
}

// filter installs a filter for all threads.
func filter(instructions []unix.SockFilter) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("prctl(PR_SET_NO_NEW_PRIVS): %w", err)
	}
	program := unix.SockFprog{Len: uint16(len(instructions)), Filter: &instructions[0]}
	const setModeFilter, allThreads = 1, 1
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, setModeFilter, allThreads, uintptr(unsafe.Pointer(&program))); errno != 0 {
		return fmt.Errorf("seccomp: %w", errno)
	}
	return nil
}
