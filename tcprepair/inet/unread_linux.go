package inet

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// Unread is how many bytes of memory the kernel has for what has come for a socket and was
// not read yet; 0: nothing waits. The socket is not disturbed (SO_MEMINFO, sk_get_meminfo,
// net/core/sock.c).
func Unread(fd int) (int, error) {
	const words = 9 // SK_MEMINFO_VARS, of which the first is SK_MEMINFO_RMEM_ALLOC
	b, err := Get(fd, unix.SOL_SOCKET, unix.SO_MEMINFO, words*4)
	if err != nil || len(b) < 4 {
		return 0, fmt.Errorf("asking for what was not read (SO_MEMINFO, %d bytes): %w", len(b), err)
	}
	return int(binary.NativeEndian.Uint32(b)), nil
}
