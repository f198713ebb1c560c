package main

import "golang.org/x/sys/cpu"

// A vectorUnit is one set of vector registers and the loop that fills them.
type vectorUnit struct {
	name      string
	registers int // that hold lanes, from number 0 on
	width     int // lanes in a register
	has       bool
	spin      func(m *machine, rounds uint64)
}

// vectorUnits are those that this CPU may have.
var vectorUnits = []vectorUnit{
	{"avx", 13, 4, cpu.X86.HasAVX, spinAVX},
	{"avx512", 29, 8, cpu.X86.HasAVX512F && cpu.X86.HasAVX512BW, spinAVX512},
}

//go:noescape
func spinAVX(m *machine, rounds uint64)

//go:noescape
func spinAVX512(m *machine, rounds uint64)
