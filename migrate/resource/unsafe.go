package resource

import "unsafe"

// addressOf is where a byte slice lies.
func addressOf(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) }
