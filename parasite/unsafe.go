package parasite

import "unsafe"

// textBytes is n bytes of this program's own code.
func textBytes(addr uintptr, n int) []byte {
	// The address is that of a function, which never moves.
	return unsafe.Slice((*byte)(*(*unsafe.Pointer)(unsafe.Pointer(&addr))), n)
}

// bytesOf is the memory of a plain struct.
func bytesOf[T any](v *T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(v)), unsafe.Sizeof(*v))
}
