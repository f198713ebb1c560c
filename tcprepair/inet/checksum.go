package inet

import "encoding/binary"

// Checksum is the internet checksum (RFC 1071) of parts, each of an even number
// of bytes but for the last one.
func Checksum(parts ...[]byte) uint16 {
	var sum uint64
	for _, part := range parts {
		for ; len(part) >= 2; part = part[2:] {
			sum += uint64(binary.BigEndian.Uint16(part))
		}
		if len(part) == 1 {
			sum += uint64(part[0]) << 8
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
