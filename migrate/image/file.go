package image

import (
	"github.com/pagurus-project/pagurus/tcprepair"
	"github.com/pagurus-project/pagurus/tcprepair/inet"
	"github.com/pagurus-project/pagurus/tcprepair/packet"
	"github.com/pagurus-project/pagurus/tcprepair/raw"
	"github.com/pagurus-project/pagurus/tcprepair/udp"
)

// A Descriptor is one entry of a process's table.
type Descriptor struct {
	FD      int   `cbor:"fd"`
	File    Index `cbor:"file"`
	CloExec bool  `cbor:"cloexec"`
}

// FileKind says what kind of thing an open file description is of, and so
// which of a File's parts are filled in.
type FileKind string

const (
	FileRegular   FileKind = "regular"   // Path, Identity; also what is only mapped
	FileDirectory FileKind = "directory" // Path, Identity
	FilePath      FileKind = "path"      // O_PATH: Path, Identity
	FileDevice    FileKind = "device"    // Path: /dev/null and its kin
	FileObject    FileKind = "object"    // Object: memfd or deleted file
	FilePipe      FileKind = "pipe"      // Pipe
	FileEvent     FileKind = "eventfd"   // Event
	FileEpoll     FileKind = "epoll"     // Epoll
	FileTimer     FileKind = "timerfd"   // Timer
	FileSignal    FileKind = "signalfd"  // SignalMask
	FileInotify   FileKind = "inotify"   // Inotify
	FileSocket    FileKind = "socket"    // Socket
	FileTCP       FileKind = "tcp"       // TCP
	FileUDP       FileKind = "udp"       // UDP
	FileNetlink   FileKind = "netlink"   // Netlink
	FileRaw       FileKind = "raw"       // Raw
	FilePacket    FileKind = "packet"    // Packet
)

// A File is an open file description (open(2)): what descriptors made by dup
// or fork share.
type File struct {
	Kind     FileKind  `cbor:"kind"`
	Flags    int       `cbor:"flags"` // F_GETFL
	Position int64     `cbor:"position"`
	Owner    *Owner    `cbor:"owner,omitempty"`
	Path     string    `cbor:"path,omitempty"`
	Identity *Identity `cbor:"identity,omitempty"`
	Locks    []Lock    `cbor:"locks,omitempty"` // flock and OFD locks, which belong to the description

	Object     Index    `cbor:"object"`
	Pipe       Index    `cbor:"pipe"`
	Socket     Index    `cbor:"socket"`
	Event      *Event   `cbor:"event,omitempty"`
	Epoll      []Watch  `cbor:"epoll,omitempty"`
	Timer      *TimerFD `cbor:"timer,omitempty"`
	SignalMask uint64   `cbor:"signal_mask,omitempty"`
	Inotify    *Inotify `cbor:"inotify,omitempty"`

	TCP     *tcprepair.Socket `cbor:"tcp,omitempty"`
	UDP     *udp.Socket       `cbor:"udp,omitempty"`
	Netlink *Netlink          `cbor:"netlink,omitempty"`
	Raw     *raw.Socket       `cbor:"raw,omitempty"`
	Packet  *packet.Socket    `cbor:"packet,omitempty"`
	Unread  int               `cbor:"unread,omitempty"` // of Raw and Packet: bytes of memory of what has come and is left behind
}

// Owner is who gets the signals of a descriptor (F_SETOWN_EX, F_SETSIG).
type Owner struct {
	Type   int `cbor:"type"` // F_OWNER_TID, F_OWNER_PID, F_OWNER_PGRP
	ID     int `cbor:"id"`
	Signal int `cbor:"signal"`
}

// Identity is what tells whether a path at the destination leads to the same
// file, or to one with the same content.
type Identity struct {
	Device  uint64 `cbor:"device"`
	Inode   uint64 `cbor:"inode"`
	Parent  uint64 `cbor:"parent"` // inode of the directory that it is in
	Mode    uint32 `cbor:"mode"`
	Bytes   int64  `cbor:"bytes"`
	MTime   int64  `cbor:"mtime"` // nanoseconds
	FSType  int64  `cbor:"fs_type"`
	FSID    uint64 `cbor:"fs_id"`
	Handle  []byte `cbor:"handle"` // name_to_handle_at(2), if the file system has them
	Digest  []byte `cbor:"digest"` // SHA-256 of the content, where it decides
	Written bool   `cbor:"written"`
	Mapped  bool   `cbor:"mapped"`
}

// LockKind is one of the kinds of file locks (fcntl(2), flock(2)).
type LockKind string

const (
	LockPOSIX LockKind = "posix"
	LockOFD   LockKind = "ofd"
	LockFlock LockKind = "flock"
)

// A Lock is one lock that is held.
type Lock struct {
	Kind  LockKind `cbor:"kind"`
	File  Index    `cbor:"file"` // for a POSIX lock: a description of the locked file
	Write bool     `cbor:"write"`
	Start int64    `cbor:"start"`
	Len   int64    `cbor:"len"` // 0: to the end
}

// A Pipe is a pipe whose ends are inside the tree.
type Pipe struct {
	Bytes   int      `cbor:"bytes"`   // its capacity
	Content [][]byte `cbor:"content"` // what is in it; of a pipe in packet mode, packet by packet
}

// Event is an eventfd.
type Event struct {
	Count     uint64 `cbor:"count"`
	Semaphore bool   `cbor:"semaphore"`
}

// A Watch is one registration in an epoll set.
type Watch struct {
	FD     int    `cbor:"fd"`   // the number it was registered under
	File   Index  `cbor:"file"` // what that was
	Events uint32 `cbor:"events"`
	Data   uint64 `cbor:"data"`
}

// TimerFD is a timerfd; times are nanoseconds.
type TimerFD struct {
	Clock    int    `cbor:"clock"`
	Ticks    uint64 `cbor:"ticks"` // expirations not yet read
	Flags    int    `cbor:"flags"` // of timerfd_settime
	Value    int64  `cbor:"value"` // until it expires; 0: disarmed
	Interval int64  `cbor:"interval"`
}

// Inotify is an inotify instance without unread events.
type Inotify struct {
	Watches []InotifyWatch `cbor:"watches"`
}

// InotifyWatch is one watch of an inotify instance.
type InotifyWatch struct {
	Number int    `cbor:"number"`
	Path   string `cbor:"path"`
	Mask   uint32 `cbor:"mask"`
}

// A Socket is one of a connected pair of unix sockets.
type Socket struct {
	Type     int       `cbor:"type"`     // SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET
	Peer     Index     `cbor:"peer"`     // of Sockets
	PeerPID  int       `cbor:"peer_pid"` // what SO_PEERCRED says
	PeerUID  uint32    `cbor:"peer_uid"`
	PeerGID  uint32    `cbor:"peer_gid"`
	Shutdown int       `cbor:"shutdown"` // bit 0: receiving, bit 1: sending
	Options  []Option  `cbor:"options"`
	Queue    []Message `cbor:"queue"` // received and not read

	Ended bool `cbor:"ended,omitempty"` // it was connected, and its peer is gone
	// Accepted: its name, an abstract one, is that of the listener that it came from, which
	// alone has it.
	Accepted bool `cbor:"accepted,omitempty"`

	Listens bool        `cbor:"listens,omitempty"` // with Backlog
	Backlog int         `cbor:"backlog,omitempty"`
	Name    []byte      `cbor:"name,omitempty"`    // as getsockname(2) tells it: a path, or NUL and an abstract name
	File    *SocketFile `cbor:"file,omitempty"`    // if the name is a path, and the file is still there
	To      Index       `cbor:"to"`                // of datagrams: the socket that it is connected to, which is not to it
	ToName  []byte      `cbor:"to_name,omitempty"` // the same outside of the tree
}

// A Netlink is a socket of netlink(7).
type Netlink struct {
	Type     int         `cbor:"type"`
	Protocol int         `cbor:"protocol"`
	Port     uint32      `cbor:"port"` // 0: not bound
	Groups   []int       `cbor:"groups"`
	ToPort   uint32      `cbor:"to_port"` // who it is connected to; 0: the kernel
	ToGroups uint32      `cbor:"to_groups"`
	Options  []Option    `cbor:"options"`
	Filter   inet.Filter `cbor:"filter"`
}

// A SocketFile is that of a unix socket.
type SocketFile struct {
	Path   string `cbor:"path" json:"path"`
	Device uint64 `cbor:"device" json:"device"`
	Inode  uint64 `cbor:"inode" json:"inode"`
	Mode   uint32 `cbor:"mode" json:"mode"`
	UID    uint32 `cbor:"uid" json:"uid"`
	GID    uint32 `cbor:"gid" json:"gid"`
}

// Option is one option of a socket that has an integer or a struct as its value.
type Option struct {
	Level int    `cbor:"level"`
	Name  int    `cbor:"name"`
	Value []byte `cbor:"value"`
}

// A Message is one message in a socket's queue; of a stream, any piece of it.
type Message struct {
	Data []byte `cbor:"data"`
	From []byte `cbor:"from,omitempty"` // of a datagram: the sender's name, if it has one
	// Passed are the open file descriptions that are on their way with it (SCM_RIGHTS).
	Passed []Index `cbor:"passed,omitempty"`
	// Credentials of the sender, if they are known. The PID is 0 in another PID namespace.
	Known bool   `cbor:"known"`
	PID   int    `cbor:"pid"`
	UID   uint32 `cbor:"uid"`
	GID   uint32 `cbor:"gid"`
}
