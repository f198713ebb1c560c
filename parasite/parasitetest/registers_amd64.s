#include "textflag.h"

// func holdRegisters(rounds uint64) (wrong uint64)
//
// Holds a pattern in every register that can be spared and looks at it rounds
// times. Returns which pattern had changed, counted from 1, or 0.
TEXT ·holdRegisters(SB), NOSPLIT, $0-16
	MOVQ rounds+0(FP), CX
	MOVQ $0x0123456789abcdef, AX
	MOVQ AX, BX
	NOTQ BX
	MOVQ $0x1111111111111111, DX
	MOVQ $0x2222222222222222, SI
	MOVQ $0x3333333333333333, DI
	MOVQ $0x4444444444444444, R8
	MOVQ $0x5555555555555555, R9
	MOVQ $0x6666666666666666, R10
	MOVQ $0x7777777777777777, R11
	MOVQ $0x0888888888888888, R12
	MOVQ $0x0999999999999999, R13
	MOVQ AX, X3
	MOVQ BX, X14

again:
	// Flags from a comparison must survive a stretch of instructions that
	// leave them alone.
	CMPQ AX, BX
	LEAQ 0(DX), DX
	LEAQ 0(SI), SI
	LEAQ 0(DI), DI
	JHI  wrong1

	MOVQ X3, R15
	CMPQ R15, AX
	JNE  wrong2
	MOVQ X14, R15
	NOTQ R15
	CMPQ R15, AX
	JNE  wrong3
	MOVQ $0x1111111111111111, R15
	CMPQ R15, DX
	JNE  wrong4
	MOVQ $0x2222222222222222, R15
	CMPQ R15, SI
	JNE  wrong5
	MOVQ $0x3333333333333333, R15
	CMPQ R15, DI
	JNE  wrong6
	MOVQ $0x4444444444444444, R15
	CMPQ R15, R8
	JNE  wrong7
	MOVQ $0x5555555555555555, R15
	CMPQ R15, R9
	JNE  wrong8
	MOVQ $0x6666666666666666, R15
	CMPQ R15, R10
	JNE  wrong9
	MOVQ $0x7777777777777777, R15
	CMPQ R15, R11
	JNE  wrong10
	MOVQ $0x0888888888888888, R15
	CMPQ R15, R12
	JNE  wrong11
	MOVQ $0x0999999999999999, R15
	CMPQ R15, R13
	JNE  wrong12
	DECQ CX
	JNZ  again
	MOVQ $0, AX
	JMP  out

wrong1:
	MOVQ $1, AX
	JMP  out

wrong2:
	MOVQ $2, AX
	JMP  out

wrong3:
	MOVQ $3, AX
	JMP  out

wrong4:
	MOVQ $4, AX
	JMP  out

wrong5:
	MOVQ $5, AX
	JMP  out

wrong6:
	MOVQ $6, AX
	JMP  out

wrong7:
	MOVQ $7, AX
	JMP  out

wrong8:
	MOVQ $8, AX
	JMP  out

wrong9:
	MOVQ $9, AX
	JMP  out

wrong10:
	MOVQ $10, AX
	JMP  out

wrong11:
	MOVQ $11, AX
	JMP  out

wrong12:
	MOVQ $12, AX

out:
	MOVQ AX, wrong+8(FP)
	RET
