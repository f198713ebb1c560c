package parasite

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TID is the thread's id as the caller sees it.
func (t *Thread) TID() int { return t.tid }

// JobStopped reports that the thread was stopped by a signal (SIGSTOP,
// SIGTSTP, ...) before it was stopped here. It stops again after Detach.
func (t *Thread) JobStopped() bool { return t.jobStopped }

// Registers are what the thread resumes with. If it sleeps in a system call
// they say so: see [Interrupted].
func (t *Thread) Registers() Registers { return t.regs }

// SetRegisters changes what the thread resumes with.
func (t *Thread) SetRegisters(regs Registers) error {
	return t.process.tracer.Do(func() error {
		t.regs = regs
		return t.writeRegisters(&regs)
	})
}

func (t *Thread) readRegisters() error {
	return t.regset(unix.PTRACE_GETREGSET, ntPrStatus, bytesOf(&t.regs), nil)
}

func (t *Thread) writeRegisters(regs *Registers) error {
	return t.regset(unix.PTRACE_SETREGSET, ntPrStatus, bytesOf(regs), nil)
}

// XState is the thread's floating-point and vector state in the standard
// format of XSAVE (Intel SDM volume 1, chapter 13).
func (t *Thread) XState() ([]byte, error) {
	// The state with every component that exists today, AMX included, is 11 KiB.
	buf := make([]byte, 16<<10)
	var n int
	err := t.process.tracer.Do(func() error {
		return t.regset(unix.PTRACE_GETREGSET, ntX86XState, buf, &n)
	})
	return buf[:n:n], err
}

// SetXState sets the floating-point and vector state. The kernel wants the
// size that this machine's own state has, which XState tells.
func (t *Thread) SetXState(state []byte) error {
	return t.process.tracer.Do(func() error {
		return t.regset(unix.PTRACE_SETREGSET, ntX86XState, state, nil)
	})
}

// HasIOPermissions reports that the thread may use I/O ports (ioperm(2)).
func (t *Thread) HasIOPermissions() (bool, error) {
	return t.hasRegset(nt386IOPerm)
}

// HasShadowStack reports that the thread runs with a user shadow stack.
func (t *Thread) HasShadowStack() (bool, error) {
	return t.hasRegset(ntX86ShStack)
}

func (t *Thread) hasRegset(note uintptr) (bool, error) {
	var n int
	err := t.process.tracer.Do(func() error {
		return t.regset(unix.PTRACE_GETREGSET, note, make([]byte, 8<<10+64), &n)
	})
	switch {
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EIO), errors.Is(err, unix.ENXIO):
		return false, nil // nothing there, or unknown to this kernel
	case err != nil:
		return false, err
	}
	return n > 0, nil
}

// regset reads or writes one register set; size, if not nil, becomes how many
// bytes the kernel moved.
func (t *Thread) regset(request int, note uintptr, buf []byte, size *int) error {
	iov := unix.Iovec{Base: unsafe.SliceData(buf), Len: uint64(len(buf))}
	if err := ptrace(request, t.tid, note, uintptr(unsafe.Pointer(&iov))); err != nil {
		return err
	}
	if size != nil {
		*size = int(iov.Len)
	}
	return nil
}

// SignalMask is the set of blocked signals, bit n-1 for signal n. Of a thread
// that sleeps in a call with a mask of its own (ppoll, sigsuspend, ...) it is
// the mask that holds after the call.
func (t *Thread) SignalMask() (uint64, error) {
	var mask uint64
	err := t.process.tracer.Do(func() error {
		return ptrace(ptraceSigMask, t.tid, sigSetBytes, uintptr(unsafe.Pointer(&mask)))
	})
	return mask, err
}

// SetSignalMask sets the blocked signals.
func (t *Thread) SetSignalMask(mask uint64) error {
	return t.process.tracer.Do(func() error {
		return ptrace(ptraceSetSigMask, t.tid, sigSetBytes, uintptr(unsafe.Pointer(&mask)))
	})
}

// PendingSignals are the signals queued for the thread or, if shared, for the
// whole process, in their order. They stay queued.
func (t *Thread) PendingSignals(shared bool) ([]SigInfo, error) {
	// struct ptrace_peeksiginfo_args (include/uapi/linux/ptrace.h).
	var args struct {
		off   uint64
		flags uint32
		nr    int32
	}
	if shared {
		args.flags = peekSigInfoShared
	}
	var all []SigInfo
	err := t.process.tracer.Do(func() error {
		var some [32]SigInfo
		for {
			args.off, args.nr = uint64(len(all)), int32(len(some))
			n, err := ptraceCount(ptracePeekSigInfo, t.tid, uintptr(unsafe.Pointer(&args)), uintptr(unsafe.Pointer(&some)))
			if err != nil {
				return fmt.Errorf("reading pending signals: %w", err)
			}
			all = append(all, some[:n]...)
			if n < len(some) {
				return nil
			}
		}
	})
	return all, err
}

// Rseq is a thread's registration of a restartable sequence area (rseq(2)).
type Rseq struct {
	Address   uint64 // 0: not registered
	Size      uint32
	Signature uint32
	Flags     uint32
	_         uint32
}

// Rseq reads the thread's registration (Linux 5.13).
func (t *Thread) Rseq() (Rseq, error) {
	var r Rseq
	err := t.process.tracer.Do(func() error {
		_, err := ptraceCount(ptraceRseqConfiguration, t.tid, unsafe.Sizeof(r), uintptr(unsafe.Pointer(&r)))
		return err
	})
	return r, err
}

// UserDispatch is a thread's syscall user dispatch
// (Documentation/admin-guide/syscall-user-dispatch.rst).
type UserDispatch struct {
	Mode     uint64 // 0: off
	Selector uint64
	Offset   uint64
	Len      uint64
}

// UserDispatch reads the thread's setting (Linux 6.4; off on older kernels,
// where it cannot be read).
func (t *Thread) UserDispatch() (UserDispatch, error) {
	var d UserDispatch
	err := t.process.tracer.Do(func() error {
		return ptrace(ptraceSyscallUserDispatch, t.tid, unsafe.Sizeof(d), uintptr(unsafe.Pointer(&d)))
	})
	if errors.Is(err, unix.EIO) || errors.Is(err, unix.EINVAL) {
		return UserDispatch{}, nil
	}
	return d, err
}

// SeccompFilter is the program of the thread's index-th filter, the newest
// first, and the flags it was installed with. It ends with ErrNoFilter.
func (t *Thread) SeccompFilter(index int) ([]unix.SockFilter, uint64, error) {
	var program []unix.SockFilter
	// struct seccomp_metadata (include/uapi/linux/ptrace.h).
	metadata := struct{ offset, flags uint64 }{offset: uint64(index)}
	err := t.process.tracer.Do(func() error {
		n, err := ptraceCount(ptraceSeccompFilter, t.tid, uintptr(index), 0)
		if err != nil {
			return err
		}
		program = make([]unix.SockFilter, n)
		if n > 0 {
			if _, err := ptraceCount(ptraceSeccompFilter, t.tid, uintptr(index), uintptr(unsafe.Pointer(&program[0]))); err != nil {
				return err
			}
		}
		_, err = ptraceCount(ptraceSeccompMetadata, t.tid, unsafe.Sizeof(metadata), uintptr(unsafe.Pointer(&metadata)))
		return err
	})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) {
		return nil, 0, ErrNoFilter
	}
	return program, metadata.flags, err
}

// filtered reports whether a seccomp filter judges the thread's system calls, or
// that this cannot be told.
func (t *Thread) filtered() bool {
	_, err := ptraceCount(ptraceSeccompFilter, t.tid, 0, 0)
	return !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT)
}

// ErrNoFilter says that a thread has fewer seccomp filters than asked for.
var ErrNoFilter = errors.New("no such seccomp filter")
