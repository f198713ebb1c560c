package inettest

import (
	"bytes"
	"encoding/binary"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/tcprepair/inet"
)

// Values are some of which most options take several.
func Values(k *inet.Kind) [][]byte {
	switch k.Label {
	case "SO_BINDTODEVICE":
		return [][]byte{[]byte("lo")}
	case "TCP_CONGESTION":
		return [][]byte{[]byte("reno"), []byte("cubic")}
	}
	var all [][]byte
	for _, n := range []uint32{1, 0, 2, 5, 64, 1000, 1 << 20, 50000, 40000 | 50000<<16} {
		word := binary.NativeEndian.AppendUint32(nil, n)
		long := binary.NativeEndian.AppendUint64(nil, uint64(n))
		switch {
		case k.Label == "SO_LINGER":
			all = append(all, append(binary.NativeEndian.AppendUint32(nil, 1), word...))
		case k.Label == "SO_TXTIME":
			all = append(all, append(binary.NativeEndian.AppendUint32(nil, unix.CLOCK_TAI), 1, 0, 0, 0))
		case k.Bytes == 32:
			all = append(all, bytes.Repeat(word, 8))
		case k.Bytes == 16: // struct __kernel_sock_timeval
			all = append(all, binary.NativeEndian.AppendUint64(long, 500000))
		case k.Bytes == 8:
			all = append(all, long)
		default:
			all = append(all, word)
		}
	}
	return all
}

// Change gives an option of a socket a value that it does not have yet, if there is one among
// Values.
func Change(k *inet.Kind, fd int) (bool, error) {
	before, err := k.Get(fd)
	if err != nil {
		return false, err
	}
	for _, value := range Values(k) {
		if inet.Set(fd, k.Level, k.Name, value) != nil {
			continue
		}
		if after, err := k.Get(fd); err == nil && !bytes.Equal(before, after) {
			return true, nil
		}
	}
	return false, nil
}
