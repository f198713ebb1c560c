package acceptqueue

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/tcprepair"
)

// found is what the kernel tells of a connection (struct inet_diag_msg).
type found struct {
	state  tcprepair.State // 0: there is none
	queued uint32          // bytes in its receive queue, the peer's FIN counted as one
	inode  uint32          // 0: nobody has a descriptor
}

// What x/sys/unix lacks, of include/uapi/linux/sock_diag.h and inet_diag.h.
const (
	sockDiagByFamily = 20
	diagRequestBytes = 56 // struct inet_diag_req_v2
	diagMessageBytes = 72 // struct inet_diag_msg
)

func dialDiag() (*netlink.Conn, error) {
	conn, err := netlink.Dial(unix.NETLINK_INET_DIAG, nil)
	if err != nil {
		return nil, fmt.Errorf("opening sock_diag: %w", err)
	}
	return conn, nil
}

// look asks for this host's end of a connection. It is looked up by its addresses and
// ports, as a packet's socket is, so a listener that a new connection would come to is
// told where there is none.
func look(conn *netlink.Conn, s *tcprepair.Socket) (found, error) {
	local, remote := s.Local.Addr().Unmap(), s.Remote.Addr().Unmap()
	request := make([]byte, diagRequestBytes)
	request[0], request[1] = unix.AF_INET6, unix.IPPROTO_TCP
	if local.Is4() {
		request[0] = unix.AF_INET
	}
	const allStates = 1<<32 - 1
	binary.NativeEndian.PutUint32(request[4:], allStates)
	// struct inet_diag_sockid: ports, addresses of 16 bytes each, device, cookie.
	binary.BigEndian.PutUint16(request[8:], s.Local.Port())
	binary.BigEndian.PutUint16(request[10:], s.Remote.Port())
	copy(request[12:28], local.AsSlice())
	copy(request[28:44], remote.AsSlice())
	const noCookie = 1<<64 - 1 // INET_DIAG_NOCOOKIE, twice
	binary.NativeEndian.PutUint64(request[48:], noCookie)

	answers, err := conn.Execute(netlink.Message{
		Header: netlink.Header{Type: sockDiagByFamily, Flags: netlink.Request},
		Data:   request,
	})
	switch {
	case errors.Is(err, unix.ENOENT):
		return found{}, nil
	case err != nil:
		return found{}, fmt.Errorf("asking for the connection of %v and %v: %w", s.Local, s.Remote, err)
	case len(answers) != 1 || len(answers[0].Data) < diagMessageBytes:
		return found{}, fmt.Errorf("asking for the connection of %v and %v: %d answers", s.Local, s.Remote, len(answers))
	}
	m := answers[0].Data
	if tcprepair.State(m[1]) == tcprepair.Listen {
		return found{}, nil
	}
	return found{
		state:  tcprepair.State(m[1]),
		queued: binary.NativeEndian.Uint32(m[56:]),
		inode:  binary.NativeEndian.Uint32(m[68:]),
	}, nil
}

// Packets of the loopback device are mostly done with when they are sent; a busy host may do
// them a little later.
const (
	patience = 500 * time.Millisecond
	pause    = 50 * time.Microsecond
)

var errLate = fmt.Errorf("not within %v", patience)

func await(done func() (bool, error)) error {
	for begun := time.Now(); ; <-time.After(pause) {
		if ok, err := done(); ok || err != nil {
			return err
		}
		if time.Since(begun) > patience {
			return errLate
		}
	}
}
