package inet

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// Unread is how many bytes of memory the kernel has for what has come for a socket and was
// not read yet; 0: nothing waits. The socket is not disturbed.
func Unread(fd int) (int, error) { return memory(fd, 0) } // SK_MEMINFO_RMEM_ALLOC

// Unsent is how many it has for what was sent and is not on its way: that of a moment ago, or
// what the program has not finished (UDP_CORK, MSG_MORE), which cannot be read. It is what
// SIOCOUTQ tells of UDP, and sockets of ping do not have that.
func Unsent(fd int) (int, error) { return memory(fd, 2) } // SK_MEMINFO_WMEM_ALLOC

// memory reads one number of SO_MEMINFO (sk_get_meminfo, net/core/sock.c).
func memory(fd, which int) (int, error) {
	const words = 9 // SK_MEMINFO_VARS
	b, err := Get(fd, unix.SOL_SOCKET, unix.SO_MEMINFO, words*4)
	if err != nil {
		return 0, fmt.Errorf("reading SO_MEMINFO: %w", err)
	}
	if len(b) < 4*(which+1) {
		return 0, fmt.Errorf("SO_MEMINFO of %d bytes", len(b))
	}
	return int(binary.NativeEndian.Uint32(b[4*which:])), nil
}
