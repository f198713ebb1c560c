package resource

import (
	"fmt"
	"unsafe"

	"github.com/pagurus-project/pagurus/parasite"
)

// registerBytes is a copy of the registers as they stand in memory.
func registerBytes(regs *parasite.Registers) []byte {
	return append([]byte(nil), unsafe.Slice((*byte)(unsafe.Pointer(regs)), unsafe.Sizeof(*regs))...)
}

// registersOf is the inverse of registerBytes.
func registersOf(raw []byte) (parasite.Registers, error) {
	var regs parasite.Registers
	if len(raw) != int(unsafe.Sizeof(regs)) {
		return regs, fmt.Errorf("registers of %d bytes", len(raw))
	}
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&regs)), unsafe.Sizeof(regs)), raw)
	return regs, nil
}
