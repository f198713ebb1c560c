package parasite

import (
	"bytes"
	"encoding/binary"
	"errors"
	"structs"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

func executorAddress() uintptr

// executorEnd stands behind the executor's last instruction (executor_amd64.s).
const executorEnd = 0x70616775727573cc

// executorCode is the machine code of the executor.
var executorCode = sync.OnceValue(func() []byte {
	const most = 1024
	text := textBytes(executorAddress(), most)
	for i := range most - 8 {
		if binary.LittleEndian.Uint64(text[i:]) == executorEnd {
			return append([]byte(nil), text[:i]...)
		}
	}
	panic("parasite: executor has no end")
})

// breakpointOffset is where, from the start of the code, a thread stands that
// has run into the executor's breakpoint.
var breakpointOffset = sync.OnceValue(func() uintptr {
	at := bytes.Index(executorCode(), []byte{0xcc, 0x90}) // INT3, NOP
	if at < 0 {
		panic("parasite: executor has no breakpoint")
	}
	return uintptr(at + 1)
})

// slotsABI stands behind the executor's code in a target and holds what the
// executor puts back at its end. The offsets are used in executor_amd64.s.
type slotsABI struct {
	_        structs.HostLayout
	r14      uint64   // 0
	rip      uint64   // 8
	rsp      uint64   // 16
	flags    uint64   // 24
	rax      uint64   // 32
	rbx      uint64   // 40
	rcx      uint64   // 48
	rdx      uint64   // 56
	rsi      uint64   // 64
	rdi      uint64   // 72
	rbp      uint64   // 80
	r8       uint64   // 88
	r9       uint64   // 96
	r10      uint64   // 104
	r11      uint64   // 112
	r12      uint64   // 120
	r13      uint64   // 128
	mask     uint64   // 136
	blockAll uint64   // 144
	r15      uint64   // 152
	pause    [2]int64 // 160, a struct timespec
}

// lookPause is the time between two looks of an executor that is done whether
// its tracer is still there.
const lookPause = 10 * time.Millisecond

const slotsSize = unsafe.Sizeof(slotsABI{})

// slotsFor is what makes the executor return to the program as regs and mask describe it.
func slotsFor(regs *Registers, mask uint64) slotsABI {
	return slotsABI{
		rip: regs.Rip, rsp: regs.Rsp, flags: regs.Eflags,
		rax: regs.Rax, rbx: regs.Rbx, rcx: regs.Rcx, rdx: regs.Rdx,
		rsi: regs.Rsi, rdi: regs.Rdi, rbp: regs.Rbp,
		r8: regs.R8, r9: regs.R9, r10: regs.R10, r11: regs.R11,
		r12: regs.R12, r13: regs.R13, r14: regs.R14, r15: regs.R15,
		mask: mask, blockAll: ^uint64(0), pause: [2]int64{0, int64(lookPause)},
	}
}

// enter points regs at an executor whose code starts at code. The
// stack pointer stays the program's own, so that a signal frame, should one be
// built, lands where the program would have put it.
func (e execution) enter(regs Registers, count int) Registers {
	regs.Rip = uint64(e.code)
	regs.Rbx = uint64(e.calls)
	regs.R12 = uint64(count)
	regs.R13 = 0
	if e.store {
		regs.R13 = 1
	}
	regs.R14 = uint64(e.slots)
	regs.R15 = uint64(e.tracer)
	regs.Orig_rax = ^uint64(0) // not in a system call: nothing to restart
	regs.Eflags &^= flagDirection | flagTrap
	return regs
}

const (
	flagTrap      = 1 << 8
	flagDirection = 1 << 10
)

// ErrCompat says that a thread runs 32-bit code, in which no calls can be made.
var ErrCompat = errors.New("32-bit code")

// Runs64Bit reports whether the thread runs 64-bit code. Any thread can change
// between the two with a jump.
func (t *Thread) Runs64Bit() bool {
	const userCS = 0x33 // __USER_CS (arch/x86/include/asm/segment.h)
	return t.regs.Cs == userCS
}

// Registers are the general-purpose registers of a thread, as
// PTRACE_GETREGSET(NT_PRSTATUS) returns them (struct user_regs_struct,
// arch/x86/include/asm/user_64.h).
type Registers = unix.PtraceRegs

// syscallInstruction is what enters the kernel; restarting a system call means
// going back by its length.
var syscallInstruction = []byte{0x0f, 0x05}

// setCall makes regs those of a thread that is about to make a system call.
func setCall(regs *Registers, call *Call) {
	regs.Rax, regs.Orig_rax = uint64(call.Nr), ^uint64(0)
	regs.Rdi, regs.Rsi, regs.Rdx = uint64(call.Args[0]), uint64(call.Args[1]), uint64(call.Args[2])
	regs.R10, regs.R8, regs.R9 = uint64(call.Args[3]), uint64(call.Args[4]), uint64(call.Args[5])
}

// syscallResult is what the last system call returned.
func syscallResult(regs *Registers) uintptr { return uintptr(regs.Rax) }
