package unixsock

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// A Status is the kernel's state of a socket (include/net/tcp_states.h).
type Status uint8

// A bound datagram socket is Connected as well once somebody has connected to it
// (unix_dgram_connect): whether it has a peer is State.HasPeer.
const (
	Connected Status = 1
	Closed    Status = 7 // also one that is only bound, or new
	Listening Status = 10
)

// A State is what sock_diag(7) tells of a unix socket.
type State struct {
	Inode  uint32
	Type   int // unix.SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET
	Status Status
	// Name is that of getsockname(2): a path without the NUL behind it, or NUL and
	// an abstract name, in which all bytes count. An accepted socket has its
	// listener's.
	Name []byte
	// HasFile says that the name is a path, and Device and FileInode are of the
	// file made then. They are the file system's own: of an inode's number the
	// lower half, and where stat(2) gives out other devices than the superblock's
	// (btrfs, overlayfs) another device. FileOf is exact.
	HasFile   bool
	Device    uint64
	FileInode uint32
	// HasPeer: it is connected to a socket. Peer is 0 if that has no inode, because
	// it still waits in its listener or was closed by now; for the latter a stream
	// or seqpacket socket has both bits of Shutdown (unix_release_sock).
	HasPeer bool
	Peer    uint32
	// Pending are the inodes of the clients whose connections wait in a listener,
	// the first to be accepted first; 0 for a client that closed its end
	// (sk_diag_dump_icons, net/unix/diag.c). The sockets that accept(2) will give
	// out have no inodes yet.
	Pending []uint32
	// PendingCut: more wait than the kernel tells in a message, so Pending is nil.
	PendingCut bool
	// Waiting and Backlog of a listener. As many connections as Backlog and one
	// more fit (unix_recvq_full_lockless).
	Waiting, Backlog uint32
	// Received and Sent are bytes of any other socket: what can be read, of a
	// datagram socket from the first datagram, and what its peer has not read,
	// counted as memory.
	Received, Sent uint32
	Shutdown       int // 1: nothing is received any more, 2: nothing is sent
	UID            uint32
}

// Look asks for one unix socket of this network namespace. Without it the error
// is fs.ErrNotExist.
func Look(inode uint32) (State, error) {
	conn, err := dial()
	if err != nil {
		return State{}, err
	}
	defer conn.Close()
	return look(conn, inode)
}

// List asks for all unix sockets of this network namespace. It is no snapshot:
// the kernel answers in parts, and of sockets beside one that is made, bound or
// closed meanwhile one can be left out (unix_diag_dump counts places in a list).
func List() ([]State, error) {
	conn, err := dial()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	// Without those that wait: a socket that does not fit into a message ends the
	// kernel's answer without an error.
	messages, err := conn.Execute(question(0, showAll&^udiagShowIcons, netlink.Dump))
	if err != nil {
		return nil, fmt.Errorf("asking for all unix sockets: %w", err)
	}
	var all []State
	for _, m := range messages {
		s, err := parse(m.Data)
		if err != nil {
			return nil, fmt.Errorf("asking for all unix sockets: %w", err)
		}
		if s.Status == Listening && s.Waiting > 0 {
			s, err = look(conn, s.Inode)
			if errors.Is(err, fs.ErrNotExist) {
				continue // closed since
			}
			if err != nil {
				return nil, err
			}
		}
		all = append(all, s)
	}
	return all, nil
}

const showAll = udiagShowName | udiagShowVFS | udiagShowPeer | udiagShowIcons | udiagShowRqlen | udiagShowUID

func dial() (*netlink.Conn, error) {
	conn, err := netlink.Dial(unix.NETLINK_SOCK_DIAG, nil)
	if err != nil {
		return nil, fmt.Errorf("asking for unix sockets: %w", err)
	}
	return conn, nil
}

// question is a struct unix_diag_req: family, protocol, pad, states, ino, show,
// cookie[2].
func question(inode, show uint32, flags netlink.HeaderFlags) netlink.Message {
	request := make([]byte, unixDiagReqBytes)
	request[0] = unix.AF_UNIX
	binary.NativeEndian.PutUint32(request[4:], ^uint32(0))
	binary.NativeEndian.PutUint32(request[8:], inode)
	binary.NativeEndian.PutUint32(request[12:], show)
	binary.NativeEndian.PutUint64(request[16:], ^uint64(0)) // INET_DIAG_NOCOOKIE
	return netlink.Message{Header: netlink.Header{Type: sockDiagByFamily, Flags: netlink.Request | flags}, Data: request}
}

func look(conn *netlink.Conn, inode uint32) (State, error) {
	s, err := ask(conn, inode, showAll)
	if errors.Is(err, unix.EMSGSIZE) {
		// unix_diag_get_exact tries with up to a page. In Linux 6.18 1949 fit.
		s, err = ask(conn, inode, showAll&^udiagShowIcons)
		s.PendingCut = true
	}
	if err != nil {
		return State{}, fmt.Errorf("asking for unix socket %d: %w", inode, err)
	}
	return s, nil
}

func ask(conn *netlink.Conn, inode, show uint32) (State, error) {
	messages, err := conn.Execute(question(inode, show, 0))
	if err != nil {
		return State{}, err
	}
	if len(messages) != 1 {
		return State{}, fmt.Errorf("%d answers", len(messages))
	}
	return parse(messages[0].Data)
}

// parse reads a struct unix_diag_msg (family, type, state, pad, ino, cookie[2])
// and the attributes behind it.
func parse(data []byte) (State, error) {
	if len(data) < unixDiagMsgBytes {
		return State{}, fmt.Errorf("an answer of %d bytes", len(data))
	}
	if data[0] != unix.AF_UNIX {
		return State{}, fmt.Errorf("an answer about family %d", data[0])
	}
	s := State{Type: int(data[1]), Status: Status(data[2]), Inode: binary.NativeEndian.Uint32(data[4:])}
	attributes, err := netlink.NewAttributeDecoder(data[unixDiagMsgBytes:])
	if err != nil {
		return State{}, err
	}
	for attributes.Next() {
		switch attributes.Type() {
		case unixDiagName:
			s.Name = attributes.Bytes()
			if n := len(s.Name); n > 1 && s.Name[0] != 0 && s.Name[n-1] == 0 {
				s.Name = s.Name[:n-1]
			}
		case unixDiagVFS: // struct unix_diag_vfs: ino, dev
			attributes.Do(numbers(2, func(of []uint32) {
				s.HasFile, s.FileInode, s.Device = true, of[0], device(of[1])
			}))
		case unixDiagPeer:
			s.HasPeer, s.Peer = true, attributes.Uint32()
		case unixDiagIcons:
			attributes.Do(numbers(-1, func(of []uint32) { s.Pending = of }))
		case unixDiagRqlen: // struct unix_diag_rqlen: rqueue, wqueue
			attributes.Do(numbers(2, func(of []uint32) {
				if s.Status == Listening {
					s.Waiting, s.Backlog = of[0], of[1]
				} else {
					s.Received, s.Sent = of[0], of[1]
				}
			}))
		case unixDiagShutdown:
			s.Shutdown = int(attributes.Uint8())
		case unixDiagUID:
			s.UID = attributes.Uint32()
		}
	}
	if err := attributes.Err(); err != nil {
		return State{}, err
	}
	return s, nil
}

// numbers reads an attribute of so many numbers, or of any number of them if
// count is negative.
func numbers(count int, put func([]uint32)) func([]byte) error {
	return func(b []byte) error {
		if len(b)%4 != 0 || count >= 0 && len(b) != 4*count {
			return fmt.Errorf("an attribute of %d bytes", len(b))
		}
		var all []uint32
		for ; len(b) > 0; b = b[4:] {
			all = append(all, binary.NativeEndian.Uint32(b))
		}
		put(all)
		return nil
	}
}
