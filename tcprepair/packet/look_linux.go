package packet

import (
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"net"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/tcprepair/inet"
)

// Look reads all of a socket but its queue, and disturbs nothing. fd may be any descriptor of
// the socket, which is in the network namespace of the caller's thread. What cannot be moved
// is inet.ErrUnsupported.
func Look(fd int) (*Socket, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	s := &Socket{UID: st.Uid, GID: st.Gid}
	var err error
	if s.Type, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err != nil {
		return nil, err
	}
	if s.Type == unix.SOCK_PACKET {
		return nil, fmt.Errorf("a packet socket of the obsolete type SOCK_PACKET %w", inet.ErrUnsupported)
	}
	if err := s.readAddress(fd); err != nil {
		return nil, err
	}
	t, err := ask(uint32(st.Ino))
	switch {
	case errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EINVAL):
		return nil, fmt.Errorf("a packet socket, of which this kernel does not tell all (CONFIG_PACKET_DIAG), %w", inet.ErrUnsupported)
	case err != nil:
		return nil, err
	case t.group:
		return nil, fmt.Errorf("a packet socket of a group that shares packets (PACKET_FANOUT) %w", inet.ErrUnsupported)
	case t.rings:
		return nil, fmt.Errorf("a packet socket with a ring in memory (PACKET_RX_RING, PACKET_TX_RING) %w", inet.ErrUnsupported)
	}
	s.CopyThreshold, s.Memberships = t.copyThreshold, t.memberships
	if s.Options, err = inet.Packet.Read(fd, false); err != nil {
		return nil, err
	}
	if s.Buffers, err = inet.ReadBuffers(fd); err != nil {
		return nil, err
	}
	if s.Filter, err = inet.ReadFilter(fd, "a packet socket"); err != nil {
		return nil, err
	}
	return s, nil
}

// readAddress reads what it is bound to.
func (s *Socket) readAddress(fd int) error {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return err
	}
	address, ok := sa.(*unix.SockaddrLinklayer)
	if !ok {
		return fmt.Errorf("a packet socket at a %T", sa)
	}
	s.Protocol = network(address.Protocol)
	if address.Ifindex == 0 {
		return nil
	}
	device, err := net.InterfaceByIndex(address.Ifindex)
	if err != nil { // -1, since packet_notifier has told it
		return fmt.Errorf("a packet socket whose device %d is gone %w", address.Ifindex, inet.ErrUnsupported)
	}
	s.Device = device.Name
	return nil
}

// network swaps the bytes of a protocol, which the kernel has in the order of the network.
func network(protocol uint16) uint16 {
	if bigEndian {
		return protocol
	}
	return bits.ReverseBytes16(protocol)
}
