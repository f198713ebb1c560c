package parasite

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/arch/x86/x86asm"
)

// ErrInUse says that the program may still read what was to be changed.
var ErrInUse = errors.New("the program may still use it")

// SetFourthArgument changes the fourth argument of the system call that the
// thread sleeps in, in the one register that holds it. The call is made again
// with it, if it restarts. The kernel gives the register back to the program,
// so the error is [ErrInUse] unless the code around the call shows that the
// program never looks at it again.
func (t *Thread) SetFourthArgument(value uint64) error {
	return t.process.tracer.Do(func() error {
		if !t.interrupted.InSystemCall() {
			return fmt.Errorf("thread %d sleeps in no system call", t.tid)
		}
		code := make([]byte, 2*lookBytes)
		at := lookBytes
		if t.process.ReadMemory(uintptr(t.regs.Rip)-lookBytes, code) != nil {
			// Near the beginning or the end of its code.
			code, at = code[:lookBytesAtLeast], 0
			if t.process.ReadMemory(uintptr(t.regs.Rip), code) != nil {
				return fmt.Errorf("register r10 of thread %d: %w", t.tid, ErrInUse)
			}
		}
		if !r10Dies(code, at) {
			return fmt.Errorf("register r10 of thread %d: %w", t.tid, ErrInUse)
		}
		t.regs.R10 = value
		t.interrupted.Args[3] = value
		return t.writeRegisters(&t.regs)
	})
}

// Bounds of what is looked at around a system call: the wrappers of C libraries
// and language runtimes return within a few instructions.
const (
	lookBytes        = 2048 // before and behind the call
	lookBytesAtLeast = 128
	lookInstructions = 96
)

// r10Dies reports that nothing reads R10 between code[at], right behind a
// system call, and the return of the function that has made it, on any path. A
// compiler that has made the call part of a larger function may go on using the
// register; but most are made by a small function of a library, for whose
// callers, and whom it calls, the register holds nothing (System V ABI, AMD64
// Architecture Processor Supplement, 3.2.1; Go's ABIInternal likewise). What is
// not understood counts as reading.
func r10Dies(code []byte, at int) bool {
	seen := make(map[int]bool)
	for paths := []int{at}; len(paths) > 0; {
		at := paths[len(paths)-1]
		paths = paths[:len(paths)-1]
		if seen[at] {
			continue
		}
		seen[at] = true
		if at < 0 || at >= len(code) || len(seen) > lookInstructions {
			return false
		}
		i, err := x86asm.Decode(code[at:], 64)
		if err != nil || i.Op == 0 { // a prefix of what is cut off
			return false
		}
		next := at + i.Len
		jump, jumps := i.Args[0].(x86asm.Rel)
		switch {
		case i.Op == x86asm.RET, i.Op == x86asm.CALL, overwritesR10(&i):
			// It holds nothing any more.
		case i.Op == x86asm.SYSCALL, i.Op == x86asm.INT, mentionsR10(i.Args[:]):
			return false
		case i.Op == x86asm.JMP && jumps:
			paths = append(paths, next+int(jump))
		case i.Op == x86asm.JMP, i.Op == x86asm.LJMP:
			return false // who knows where to
		case jumps: // or not
			paths = append(paths, next, next+int(jump))
		default:
			paths = append(paths, next)
		}
	}
	return true
}

// r10 in all its widths.
var r10 = []x86asm.Reg{x86asm.R10, x86asm.R10L, x86asm.R10W, x86asm.R10B}

// overwritesR10 reports that an instruction gives the register a value that
// does not depend on the old one. Writing 32 bits clears the upper half.
func overwritesR10(i *x86asm.Inst) bool {
	if i.Args[0] != x86asm.R10 && i.Args[0] != x86asm.R10L {
		return false
	}
	switch i.Op {
	case x86asm.MOV, x86asm.LEA, x86asm.MOVZX, x86asm.MOVSX, x86asm.MOVSXD, x86asm.POP:
		return !mentionsR10(i.Args[1:])
	case x86asm.XOR:
		return i.Args[0] == i.Args[1]
	}
	return false
}

// mentionsR10 reports that an operand is the register or an address made with it.
func mentionsR10(operands []x86asm.Arg) bool {
	for _, operand := range operands {
		switch o := operand.(type) {
		case x86asm.Reg:
			if slices.Contains(r10, o) {
				return true
			}
		case x86asm.Mem:
			if slices.Contains(r10, o.Base) || slices.Contains(r10, o.Index) {
				return true
			}
		}
	}
	return false
}
