#include "textflag.h"

// func executor()
//
// The only machine code of ours that ever runs inside another process. It is
// never called here: its bytes are copied into the target, wherever there is
// room, so everything in it is position-independent and it needs no stack.
//
// Calling convention, set up through ptrace:
//
//	BX   first of the calls to make, an array of struct callABI (64 bytes each)
//	R12  how many
//	R13  0: results are not stored (the array may be read-only)
//	R14  0: end in a breakpoint; else the address of the struct slotsABI that
//	     stands right behind the code: put back what it holds and go on there
//	R15  with R14, 0: do so at once; else the id of the tracer's thread: say that
//	     all calls are made, in the word behind the array, and wait to be stopped
//
// The tracer of a target that must survive, whatever happens to the tracer,
// sets R14. Should the tracer die, the target makes the rest of the calls,
// restores itself and carries on with its program.
TEXT ·executor(SB), NOSPLIT|NOFRAME, $0-0
loop:
	TESTQ R12, R12
	JZ    done
	MOVQ  0(BX), AX
	MOVQ  8(BX), DI
	MOVQ  16(BX), SI
	MOVQ  24(BX), DX
	MOVQ  32(BX), R10
	MOVQ  40(BX), R8
	MOVQ  48(BX), R9
	SYSCALL
	TESTQ R13, R13
	JZ    next
	MOVQ  AX, 56(BX)

next:
	ADDQ $64, BX
	DECQ R12
	JMP  loop

done:
	TESTQ R14, R14
	JNZ   survive
	BYTE  $0xcc    // INT3
	BYTE  $0x90    // NOP: the pair stands nowhere else

survive:
	TESTQ R15, R15
	JZ    restore
	MOVQ  R15, 0(BX)

	// Looks 100 times a second whether the tracer is still there. ppoll, because
	// a call that it interrupts could not be restarted after poll or nanosleep:
	// they change the thread's restart block. It cannot write what is left back to
	// slots.pause, which the target may only read. The number of looks is bounded,
	// in case another thread gets the tracer's id.
	MOVQ $3000, R12

await:
	// tkill(tracer, 0) == -ESRCH
	MOVQ $200, AX
	MOVQ R15, DI
	MOVQ $0, SI
	SYSCALL
	CMPQ AX, $-3
	JEQ  restore

	// ppoll(NULL, 0, &slots.pause, NULL, 8)
	MOVQ $271, AX
	MOVQ $0, DI
	MOVQ $0, SI
	LEAQ 160(R14), DX
	MOVQ $0, R10
	MOVQ $8, R8
	SYSCALL
	DECQ R12
	JNZ  await

restore:
	// No signal may come in while SP points at the slots:
	// rt_sigprocmask(SIG_SETMASK, &slots.blockAll, NULL, 8)
	MOVQ $14, AX
	MOVQ $2, DI
	LEAQ 144(R14), SI
	MOVQ $0, DX
	MOVQ $8, R10
	SYSCALL

	// The flags can only be set through a stack. Nothing below touches them:
	// MOVQ and LEAQ do not, and SYSCALL preserves them.
	LEAQ 24(R14), SP
	POPFQ
	MOVQ 16(R14), SP

	// rt_sigprocmask(SIG_SETMASK, &slots.mask, NULL, 8)
	MOVQ $14, AX
	MOVQ $2, DI
	LEAQ 136(R14), SI
	MOVQ $8, R10
	SYSCALL

	MOVQ 32(R14), AX
	MOVQ 40(R14), BX
	MOVQ 48(R14), CX
	MOVQ 56(R14), DX
	MOVQ 64(R14), SI
	MOVQ 72(R14), DI
	MOVQ 80(R14), BP
	MOVQ 88(R14), R8
	MOVQ 96(R14), R9
	MOVQ 104(R14), R10
	MOVQ 112(R14), R11
	MOVQ 120(R14), R12
	MOVQ 128(R14), R13
	MOVQ 152(R14), R15

	// MOVQ 6(IP), R14; JMP *8(IP): the first two slots.
	BYTE $0x4c; BYTE $0x8b; BYTE $0x35; LONG $6
	BYTE $0xff; BYTE $0x25; LONG $8

	// How executorCode finds the end: eight bytes that are no code of ours.
	QUAD $0x70616775727573cc

// func executorAddress() uintptr
TEXT ·executorAddress(SB), NOSPLIT, $0-8
	LEAQ ·executor(SB), AX
	MOVQ AX, ret+0(FP)
	RET
