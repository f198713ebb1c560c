#include "textflag.h"

// What both functions do, with their registers full all the time:
//
//	x = x · (1 - x) · r     in every lane of every register, rounds times
//
// Meanwhile the x87 stack holds four numbers, and both control words are the
// caller's. All that is written back is what the registers hold at the end.
//
// ABI0: the argument is on the stack, all registers but SP, BP and R14 (the
// goroutine) are free. The callers' wrapper puts 0 back into X15.

// Offsets in struct machine.
#define MXCSR  0
#define CW     4
#define STACK  8
#define ONE    40
#define GROWTH 48
#define MASKS  56
#define LANES  112

#define ENTER \
	STMXCSR saved-8(SP) \
	LDMXCSR MXCSR(DI)   \
	FSTCW   savedCW-4(SP) \
	FLDCW   CW(DI)      \
	FMOVD   (STACK+0)(DI), F0  \
	FMOVD   (STACK+8)(DI), F0  \
	FMOVD   (STACK+16)(DI), F0 \
	FMOVD   (STACK+24)(DI), F0

#define LEAVE \
	FMOVDP  F0, (STACK+24)(DI) \
	FMOVDP  F0, (STACK+16)(DI) \
	FMOVDP  F0, (STACK+8)(DI)  \
	FMOVDP  F0, (STACK+0)(DI)  \
	FSTCW   CW(DI)      \
	FLDCW   savedCW-4(SP) \
	STMXCSR MXCSR(DI)   \
	LDMXCSR saved-8(SP) \
	VZEROUPPER

// Subtrahend and factors come first in Go's order of operands.
#define STEP(x, one, t, r) \
	VSUBPD x, one, t \
	VMULPD t, x, x   \
	VMULPD r, x, x

#define LOADY(n, y)  VMOVUPD (LANES+n*32)(DI), y
#define STOREY(n, y) VMOVUPD y, (LANES+n*32)(DI)
#define LOADZ(n, z)  VMOVUPD (LANES+n*64)(DI), z
#define STOREZ(n, z) VMOVUPD z, (LANES+n*64)(DI)

// func spinAVX(m *machine, rounds uint64)
//
// Y0 to Y12 hold x, Y13 is in between, Y14 is 1, Y15 is r.
TEXT ·spinAVX(SB), NOSPLIT, $8-16
	MOVQ m+0(FP), DI
	MOVQ rounds+8(FP), CX
	ENTER
	VBROADCASTSD ONE(DI), Y14
	VBROADCASTSD GROWTH(DI), Y15
	LOADY(0, Y0)
	LOADY(1, Y1)
	LOADY(2, Y2)
	LOADY(3, Y3)
	LOADY(4, Y4)
	LOADY(5, Y5)
	LOADY(6, Y6)
	LOADY(7, Y7)
	LOADY(8, Y8)
	LOADY(9, Y9)
	LOADY(10, Y10)
	LOADY(11, Y11)
	LOADY(12, Y12)

again:
	STEP(Y0, Y14, Y13, Y15)
	STEP(Y1, Y14, Y13, Y15)
	STEP(Y2, Y14, Y13, Y15)
	STEP(Y3, Y14, Y13, Y15)
	STEP(Y4, Y14, Y13, Y15)
	STEP(Y5, Y14, Y13, Y15)
	STEP(Y6, Y14, Y13, Y15)
	STEP(Y7, Y14, Y13, Y15)
	STEP(Y8, Y14, Y13, Y15)
	STEP(Y9, Y14, Y13, Y15)
	STEP(Y10, Y14, Y13, Y15)
	STEP(Y11, Y14, Y13, Y15)
	STEP(Y12, Y14, Y13, Y15)
	DECQ CX
	JNZ  again

	STOREY(0, Y0)
	STOREY(1, Y1)
	STOREY(2, Y2)
	STOREY(3, Y3)
	STOREY(4, Y4)
	STOREY(5, Y5)
	STOREY(6, Y6)
	STOREY(7, Y7)
	STOREY(8, Y8)
	STOREY(9, Y9)
	STOREY(10, Y10)
	STOREY(11, Y11)
	STOREY(12, Y12)
	LEAVE
	RET

// func spinAVX512(m *machine, rounds uint64)
//
// Z0 to Z28 hold x, Z29 is in between, Z30 is 1, Z31 is r; K1 to K7 hold masks.
TEXT ·spinAVX512(SB), NOSPLIT, $8-16
	MOVQ m+0(FP), DI
	MOVQ rounds+8(FP), CX
	ENTER
	KMOVQ (MASKS+0)(DI), K1
	KMOVQ (MASKS+8)(DI), K2
	KMOVQ (MASKS+16)(DI), K3
	KMOVQ (MASKS+24)(DI), K4
	KMOVQ (MASKS+32)(DI), K5
	KMOVQ (MASKS+40)(DI), K6
	KMOVQ (MASKS+48)(DI), K7
	VBROADCASTSD ONE(DI), Z30
	VBROADCASTSD GROWTH(DI), Z31
	LOADZ(0, Z0)
	LOADZ(1, Z1)
	LOADZ(2, Z2)
	LOADZ(3, Z3)
	LOADZ(4, Z4)
	LOADZ(5, Z5)
	LOADZ(6, Z6)
	LOADZ(7, Z7)
	LOADZ(8, Z8)
	LOADZ(9, Z9)
	LOADZ(10, Z10)
	LOADZ(11, Z11)
	LOADZ(12, Z12)
	LOADZ(13, Z13)
	LOADZ(14, Z14)
	LOADZ(15, Z15)
	LOADZ(16, Z16)
	LOADZ(17, Z17)
	LOADZ(18, Z18)
	LOADZ(19, Z19)
	LOADZ(20, Z20)
	LOADZ(21, Z21)
	LOADZ(22, Z22)
	LOADZ(23, Z23)
	LOADZ(24, Z24)
	LOADZ(25, Z25)
	LOADZ(26, Z26)
	LOADZ(27, Z27)
	LOADZ(28, Z28)

again:
	STEP(Z0, Z30, Z29, Z31)
	STEP(Z1, Z30, Z29, Z31)
	STEP(Z2, Z30, Z29, Z31)
	STEP(Z3, Z30, Z29, Z31)
	STEP(Z4, Z30, Z29, Z31)
	STEP(Z5, Z30, Z29, Z31)
	STEP(Z6, Z30, Z29, Z31)
	STEP(Z7, Z30, Z29, Z31)
	STEP(Z8, Z30, Z29, Z31)
	STEP(Z9, Z30, Z29, Z31)
	STEP(Z10, Z30, Z29, Z31)
	STEP(Z11, Z30, Z29, Z31)
	STEP(Z12, Z30, Z29, Z31)
	STEP(Z13, Z30, Z29, Z31)
	STEP(Z14, Z30, Z29, Z31)
	STEP(Z15, Z30, Z29, Z31)
	STEP(Z16, Z30, Z29, Z31)
	STEP(Z17, Z30, Z29, Z31)
	STEP(Z18, Z30, Z29, Z31)
	STEP(Z19, Z30, Z29, Z31)
	STEP(Z20, Z30, Z29, Z31)
	STEP(Z21, Z30, Z29, Z31)
	STEP(Z22, Z30, Z29, Z31)
	STEP(Z23, Z30, Z29, Z31)
	STEP(Z24, Z30, Z29, Z31)
	STEP(Z25, Z30, Z29, Z31)
	STEP(Z26, Z30, Z29, Z31)
	STEP(Z27, Z30, Z29, Z31)
	STEP(Z28, Z30, Z29, Z31)
	DECQ CX
	JNZ  again

	STOREZ(0, Z0)
	STOREZ(1, Z1)
	STOREZ(2, Z2)
	STOREZ(3, Z3)
	STOREZ(4, Z4)
	STOREZ(5, Z5)
	STOREZ(6, Z6)
	STOREZ(7, Z7)
	STOREZ(8, Z8)
	STOREZ(9, Z9)
	STOREZ(10, Z10)
	STOREZ(11, Z11)
	STOREZ(12, Z12)
	STOREZ(13, Z13)
	STOREZ(14, Z14)
	STOREZ(15, Z15)
	STOREZ(16, Z16)
	STOREZ(17, Z17)
	STOREZ(18, Z18)
	STOREZ(19, Z19)
	STOREZ(20, Z20)
	STOREZ(21, Z21)
	STOREZ(22, Z22)
	STOREZ(23, Z23)
	STOREZ(24, Z24)
	STOREZ(25, Z25)
	STOREZ(26, Z26)
	STOREZ(27, Z27)
	STOREZ(28, Z28)
	KMOVQ K1, (MASKS+0)(DI)
	KMOVQ K2, (MASKS+8)(DI)
	KMOVQ K3, (MASKS+16)(DI)
	KMOVQ K4, (MASKS+24)(DI)
	KMOVQ K5, (MASKS+32)(DI)
	KMOVQ K6, (MASKS+40)(DI)
	KMOVQ K7, (MASKS+48)(DI)
	LEAVE
	RET
