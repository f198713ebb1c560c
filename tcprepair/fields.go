package tcprepair

import "encoding/binary"

// encode is a struct of 32-bit fields as the kernel has it.
func encode(fields ...uint32) []byte {
	var b []byte
	for _, f := range fields {
		b = binary.NativeEndian.AppendUint32(b, f)
	}
	return b
}

func decode(b []byte, fields ...*uint32) bool {
	if len(b) < 4*len(fields) {
		return false
	}
	for i, f := range fields {
		*f = binary.NativeEndian.Uint32(b[4*i:])
	}
	return true
}
