package resource

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// unixState is what sock_diag(7) tells of a unix socket.
type unixState struct {
	state    uint8 // TCP_ESTABLISHED for a connected one, TCP_LISTEN, TCP_CLOSE
	peer     uint32
	named    bool
	shutdown int
}

// Of include/uapi/linux/unix_diag.h and sock_diag.h.
const (
	sockDiagByFamily = 20

	udiagShowName = 1 << 0
	udiagShowPeer = 1 << 2

	unixDiagName     = 0
	unixDiagPeer     = 2
	unixDiagShutdown = 6

	unixDiagMsgBytes = 16
)

// readUnixState asks for one unix socket of this network namespace by its inode.
func readUnixState(inode uint64) (unixState, error) {
	var s unixState
	conn, err := netlink.Dial(unix.NETLINK_SOCK_DIAG, nil)
	if err != nil {
		return s, fmt.Errorf("asking for sockets: %w", err)
	}
	defer conn.Close()
	// struct unix_diag_req: family, protocol, pad, states, ino, show, cookie[2].
	request := make([]byte, 24)
	request[0] = unix.AF_UNIX
	binary.NativeEndian.PutUint32(request[4:], ^uint32(0))
	binary.NativeEndian.PutUint32(request[8:], uint32(inode))
	binary.NativeEndian.PutUint32(request[12:], udiagShowName|udiagShowPeer)
	binary.NativeEndian.PutUint64(request[16:], ^uint64(0)) // INET_DIAG_NOCOOKIE
	messages, err := conn.Execute(netlink.Message{
		Header: netlink.Header{Type: sockDiagByFamily, Flags: netlink.Request},
		Data:   request,
	})
	if errors.Is(err, unix.ENOENT) {
		return s, fmt.Errorf("socket %d: %w", inode, os.ErrNotExist)
	}
	if err != nil {
		return s, fmt.Errorf("asking for socket %d: %w", inode, err)
	}
	if len(messages) != 1 {
		return s, fmt.Errorf("asking for socket %d: %d answers", inode, len(messages))
	}
	if s, err = parseUnixState(messages[0].Data); err != nil {
		return s, fmt.Errorf("asking for socket %d: %w", inode, err)
	}
	return s, nil
}

// parseUnixState reads a struct unix_diag_msg (family, type, state, pad, ino,
// cookie[2]) and the attributes behind it.
func parseUnixState(data []byte) (unixState, error) {
	var s unixState
	if len(data) < unixDiagMsgBytes {
		return s, fmt.Errorf("an answer of %d bytes", len(data))
	}
	s.state = data[2]
	attributes, err := netlink.NewAttributeDecoder(data[unixDiagMsgBytes:])
	if err != nil {
		return s, err
	}
	for attributes.Next() {
		switch attributes.Type() {
		case unixDiagName:
			s.named = true
		case unixDiagPeer:
			s.peer = attributes.Uint32()
		case unixDiagShutdown:
			s.shutdown = int(attributes.Uint8())
		}
	}
	return s, attributes.Err()
}
