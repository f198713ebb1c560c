package lab

import (
	"fmt"
	"math"
	"os"
	"structs"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// cloneArgs is struct clone_args of include/uapi/linux/sched.h, as of Linux 5.7.
type cloneArgs struct {
	_          structs.HostLayout
	flags      uint64
	pidfd      uint64
	childTID   uint64
	parentTID  uint64
	exitSignal uint64
	stack      uint64
	stackSize  uint64
	tls        uint64
	setTID     uint64
	setTIDSize uint64
	cgroup     uint64
}

// fork starts this program again with the given streams, in the control group
// and in new namespaces. It must be called from a locked thread.
//
// It does what os/exec does, except that the child gets a copy of the memory:
// os/exec's children share it (CLONE_VM), and such a child does not enter its
// parent's new time namespace (copy_namespaces in kernel/nsproxy.c), before
// Linux 6.3 not even at its exec.
func fork(group *os.File, files []*os.File, args []string) (int, error) {
	self, err := unix.BytePtrFromString("/proc/self/exe")
	if err != nil {
		return 0, err
	}
	argv, err := syscall.SlicePtrFromStrings(args)
	if err != nil {
		return 0, err
	}
	envp, err := syscall.SlicePtrFromStrings(os.Environ())
	if err != nil {
		return 0, err
	}
	// Above all numbers that they shall have in the child, so that putting one
	// in its place overwrites no other.
	fds := make([]int, len(files))
	for i, f := range files {
		fds[i], err = unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, len(files))
		if err != nil {
			return 0, fmt.Errorf("preparing descriptors: %w", err)
		}
		defer unix.Close(fds[i])
	}
	clone := cloneArgs{
		flags:      namespaces | unix.CLONE_INTO_CGROUP,
		exitSignal: uint64(unix.SIGCHLD),
		cgroup:     uint64(group.Fd()),
	}
	pid, errno := forkExec(&clone, fds, self, &argv[0], &envp[0])
	if errno != 0 {
		return 0, fmt.Errorf("forking into new namespaces: %w", errno)
	}
	return pid, nil
}

// forkExec is fork's part that may neither allocate nor be interrupted: the
// child is a copy with this one thread of a program that has many.
//
//go:norace
func forkExec(clone *cloneArgs, fds []int, path *byte, argv, envp **byte) (int, syscall.Errno) {
	syscall.ForkLock.Lock()
	defer syscall.ForkLock.Unlock()
	// A signal must not reach the runtime's handlers in the child.
	all, before := uint64(math.MaxUint64), uint64(0)
	setMask(&all, &before)
	pid, _, errno := syscall.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(clone)), unsafe.Sizeof(*clone), 0)
	if errno == 0 && pid == 0 {
		becomeHost(fds, &before, path, argv, envp)
	}
	setMask(&before, nil)
	return int(pid), errno
}

// becomeHost runs in the child. Its exit status is an errno.
//
//go:norace
//go:nosplit
func becomeHost(fds []int, mask *uint64, path *byte, argv, envp **byte) {
	_, _, errno := syscall.RawSyscall(unix.SYS_UNSHARE, unix.CLONE_NEWCGROUP, 0, 0)
	if errno == 0 {
		_, _, errno = syscall.RawSyscall(unix.SYS_SETSID, 0, 0, 0)
	}
	for i := 0; i < len(fds) && errno == 0; i++ {
		_, _, errno = syscall.RawSyscall(unix.SYS_DUP3, uintptr(fds[i]), uintptr(i), 0)
	}
	// What the maker of the lab was started with is not for its hosts. Before
	// Linux 5.9 there is no such call, and they get it.
	syscall.RawSyscall(unix.SYS_CLOSE_RANGE, uintptr(len(fds)), math.MaxUint32, 0)
	if errno == 0 {
		setMask(mask, nil)
		_, _, errno = syscall.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(path)), uintptr(unsafe.Pointer(argv)), uintptr(unsafe.Pointer(envp)))
	}
	for {
		syscall.RawSyscall(unix.SYS_EXIT_GROUP, uintptr(errno), 0, 0)
	}
}

// setMask is sigprocmask(2) for the calling thread; the mask has 8 bytes.
//
//go:norace
//go:nosplit
func setMask(mask, before *uint64) {
	syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(mask)), uintptr(unsafe.Pointer(before)), 8, 0, 0)
}
