package resource

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/migrate/image"
)

// socketEnd: one of a connected pair of unix sockets (socketpair(2)), both of
// whose ends are inside the tree, or whose other end was closed.
var socketEnd = fileKind{
	dump: dumpSocket,
	open: func(r *TreeRestore, f *image.File) (int, error) {
		fd, ok := r.sockets[f.Socket]
		if !ok {
			return 0, errors.New("its pair was not made")
		}
		if err := setStatusFlags(fd, f.Flags); err != nil {
			return 0, err
		}
		return unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	},
}

// socketOptions are those of a unix socket that hold a value.
var socketOptions = []int{
	unix.SO_SNDBUF, unix.SO_RCVBUF, unix.SO_RCVLOWAT, unix.SO_PASSCRED, unix.SO_RCVTIMEO_NEW, unix.SO_SNDTIMEO_NEW,
	unix.SO_PEEK_OFF, unix.SO_PASSSEC, unix.SO_PRIORITY, unix.SO_MARK,
}

// dumpSocket reads an end. Other sockets are blockers, each with its name.
func dumpSocket(d *ProcessDump, o *openFile, f *image.File) error {
	fd, err := d.borrow(o.fd)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	refuse := func(what, hint string) {
		d.Block(migrate.CodeDescriptor, hint, "descriptor %d of process %d is %s (%s)", o.fd, d.Proc.PID, what, o.link)
		f.Kind, f.Path = image.FileDevice, "/dev/null" // so that reading can go on
	}
	family, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return fmt.Errorf("asking for its family: %w", err)
	}
	kind, err := inetKindOf(fd, family)
	switch {
	case err != nil:
		return err
	case kind.isTCP():
		return dumpTCP(d, o, f, fd, refuse)
	case kind.isUDP():
		return dumpUDP(d, f, fd, refuse)
	case family != unix.AF_UNIX:
		refuse(familyName(family, kind.protocol), "close it before the move: it is of a kind that cannot move yet")
		return nil
	}
	state, err := readUnixState(o.st.Ino)
	if err != nil {
		return err
	}
	accepting, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil {
		return err
	}
	typ, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return err
	}
	switch {
	case accepting != 0:
		refuse("a listening unix socket", "close it before the move: only socket pairs can move yet")
		return nil
	case state.named:
		refuse("a unix socket with an address", "close it before the move: only socket pairs can move yet")
		return nil
	case state.peer == 0 && !d.wasConnected(fd, typ):
		refuse("a unix socket without a connection", "close it before the move: only socket pairs can move yet")
		return nil
	}
	s := image.Socket{Type: typ, Peer: image.None, Shutdown: state.shutdown}
	if creds, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
		s.PeerPID, s.PeerUID, s.PeerGID = int(creds.Pid), creds.Uid, creds.Gid
	}
	filtered, err := hasFilter(fd)
	if err != nil {
		return fmt.Errorf("asking for its filter: %w", err)
	}
	if filtered {
		d.Block(migrate.CodeDescriptor, "have the program detach it (SO_DETACH_FILTER)", "descriptor %d of process %d is a unix socket with a filter (%s)", o.fd, d.Proc.PID, o.link)
	}
	for _, option := range socketOptions {
		value, err := socketOption(fd, unix.SOL_SOCKET, option)
		if err != nil {
			return fmt.Errorf("reading option %d: %w", option, err)
		}
		s.Options = append(s.Options, image.Option{Level: unix.SOL_SOCKET, Name: option, Value: value})
	}
	if !d.Inspect {
		if s.Queue, err = socketQueue(fd, typ, state.peer == 0 || state.shutdown&shutReceive != 0); err != nil {
			return fmt.Errorf("reading its queue: %w", err)
		}
	}
	f.Socket = len(d.image.Sockets)
	d.image.Sockets = append(d.image.Sockets, s)
	d.sockets[uint32(o.st.Ino)] = f.Socket
	if state.peer != 0 {
		d.then(func() error {
			peer, ok := d.sockets[state.peer]
			if !ok {
				d.Block(migrate.CodeOutsideEnd, "close it there first", "descriptor %d of process %d, %s, is connected to a socket of another process", o.fd, d.Proc.PID, o.link)
				return nil
			}
			d.image.Sockets[f.Socket].Peer = peer
			return nil
		})
	}
	return nil
}

// wasConnected reports whether a socket without a peer has lost it, as opposed
// to never having had one.
func (d *ProcessDump) wasConnected(fd, typ int) bool {
	if typ == unix.SOCK_DGRAM {
		return false
	}
	creds, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	return err == nil && creds.Pid != 0
}

func familyName(family, protocol int) string {
	protocols := map[int]string{
		unix.IPPROTO_SCTP: "an SCTP socket", unix.IPPROTO_DCCP: "a DCCP socket", unix.IPPROTO_UDPLITE: "a UDP-Lite socket",
		unix.IPPROTO_ICMP: "an ICMP socket", unix.IPPROTO_ICMPV6: "an ICMPv6 socket", unix.IPPROTO_RAW: "a raw socket",
	}
	if name, ok := protocols[protocol]; ok {
		return name
	}
	names := map[int]string{
		unix.AF_INET: "an IPv4 socket", unix.AF_INET6: "an IPv6 socket", unix.AF_NETLINK: "a netlink socket",
		unix.AF_PACKET: "a packet socket", unix.AF_VSOCK: "a vsock socket", unix.AF_ALG: "a socket of the crypto API",
		unix.AF_XDP: "an XDP socket", unix.AF_CAN: "a CAN socket", unix.AF_KEY: "a key management socket", unix.AF_TIPC: "a TIPC socket",
		unix.AF_BLUETOOTH: "a Bluetooth socket", unix.AF_RDS: "an RDS socket", unix.AF_SMC: "an SMC socket",
	}
	if name, ok := names[family]; ok {
		return name
	}
	return fmt.Sprintf("a socket of family %d", family)
}

// errPassedDescriptors says that a queue holds what no other socket can be given.
var errPassedDescriptors = errors.New("descriptors are on their way in it (SCM_RIGHTS)")

// shutReceive is RCV_SHUTDOWN (include/net/sock.h).
const shutReceive = 1

// socketQueue reads what has arrived at a socket and leaves it there. ended says
// that nothing more will come.
func socketQueue(fd, typ int, ended bool) ([]image.Message, error) {
	all := 0 // bytes of all packets
	if typ == unix.SOCK_SEQPACKET {
		var err error
		if all, err = unix.IoctlGetInt(fd, unix.SIOCINQ); err != nil {
			return nil, err
		}
	}
	// Where the program's own MSG_PEEK looks is put back.
	was, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF)
	if err != nil {
		return nil, err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, 0); err != nil {
		return nil, err
	}
	queue, err := peekAll(fd, typ, ended, all)
	return queue, errors.Join(err, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, was))
}

// peekAll looks at one message after the other. The kernel passes over an empty
// one that was looked at (__skb_try_recv_from_queue, net/core/datagram.c), so of
// empty ones only the first look tells.
func peekAll(fd, typ int, ended bool, all int) ([]image.Message, error) {
	var queue []image.Message
	at := 0    // bytes passed
	empty := 0 // messages in a row
	buf := make([]byte, 64<<10)
	control := make([]byte, 2<<10)
	for {
		n, nc, flags, _, err := unix.Recvmsg(fd, buf, control, unix.MSG_PEEK|unix.MSG_DONTWAIT|unix.MSG_TRUNC|unix.MSG_CMSG_CLOEXEC)
		if errors.Is(err, unix.EAGAIN) || err == nil && n == 0 && typ == unix.SOCK_STREAM {
			return queue, nil
		}
		if err != nil {
			return nil, err
		}
		m, err := readControl(control[:nc])
		if err != nil {
			return nil, err
		}
		if n > len(buf) {
			// A message longer than the buffer: look at the same one again.
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, at); err != nil {
				return nil, err
			}
			buf = make([]byte, 2*n)
			continue
		}
		at += n
		if flags&unix.MSG_CTRUNC != 0 {
			return nil, errPassedDescriptors
		}
		if n > 0 {
			empty = 0
		} else if empty++; ended && typ == unix.SOCK_SEQPACKET && at == all && empty > 1 {
			return queue, nil // the end of a connection looks like that too, for ever
		}
		m.Data = slices.Clone(buf[:n])
		queue = append(queue, m)
	}
}

// readControl takes the sender's credentials out of a message's control data.
func readControl(control []byte) (image.Message, error) {
	m, received, passed, err := parseControl(control)
	for _, fd := range received {
		unix.Close(fd)
	}
	if err == nil && passed {
		err = errPassedDescriptors
	}
	return m, err
}

// scmPIDFD is SCM_PIDFD (include/linux/socket.h): a descriptor of the sender,
// for a receiver that has asked for it.
const scmPIDFD = 4

// parseControl reads a message's control data: the sender's credentials, the
// descriptors that came with it, and whether the sender has passed any.
func parseControl(control []byte) (m image.Message, received []int, passed bool, err error) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return m, nil, false, err
	}
	var errs []error
	for _, c := range messages {
		if c.Header.Level != unix.SOL_SOCKET {
			continue
		}
		switch c.Header.Type {
		case unix.SCM_CREDENTIALS:
			creds, err := unix.ParseUnixCredentials(&c)
			errs = append(errs, err)
			if err == nil {
				m.PID, m.UID, m.GID = int(creds.Pid), creds.Uid, creds.Gid
			}
		case unix.SCM_RIGHTS, scmPIDFD:
			passed = passed || c.Header.Type == unix.SCM_RIGHTS
			c.Header.Type = unix.SCM_RIGHTS // a pidfd lies there like one that is passed
			c.Data = c.Data[:len(c.Data)&^3]
			fds, err := unix.ParseUnixRights(&c)
			received, errs = append(received, fds...), append(errs, err)
		}
	}
	return m, received, passed, errors.Join(errs...)
}

// makeSocketPairs makes all pairs, in the shell, so that each end knows the
// right process as its peer (SO_PEERCRED), and fills their queues.
func (r *ProcessRestore) makeSocketPairs() error {
	for i := range r.Image.Sockets {
		if _, ok := r.sockets[i]; ok {
			continue
		}
		if err := r.makeSocketPair(i); err != nil {
			return fmt.Errorf("making a socket pair: %w", err)
		}
	}
	for i := range r.Image.Sockets {
		if err := r.fillSocket(i); err != nil {
			return fmt.Errorf("filling a socket pair: %w", err)
		}
	}
	// All queues are filled before any end is shut down.
	for i := range r.Image.Sockets {
		if err := r.finishSocket(i); err != nil {
			return fmt.Errorf("setting up a socket pair: %w", err)
		}
	}
	return nil
}

func (r *ProcessRestore) makeSocketPair(index image.Index) error {
	s := &r.Image.Sockets[index]
	none := ^uintptr(0)
	b := r.batch()
	b.Call(unix.SYS_SETRESGID, none, uintptr(s.PeerGID), none)
	b.Call(unix.SYS_SETRESUID, none, uintptr(s.PeerUID), none)
	out := b.Space(8)
	b.Call(unix.SYS_SOCKETPAIR, unix.AF_UNIX, uintptr(s.Type), 0, out)
	b.Call(unix.SYS_SETRESUID, none, 0, none)
	b.Call(unix.SYS_SETRESGID, none, 0, none)
	if err := b.RunAll(r.Ctx); err != nil {
		return err
	}
	raw := b.Read(out, 8)
	for i, end := range []image.Index{index, s.Peer} {
		fd, err := borrow(r.Process.PID, int(binary.NativeEndian.Uint32(raw[4*i:])))
		if err != nil {
			return err
		}
		if end == image.None {
			r.lostPeers[index] = fd
		} else {
			r.sockets[end] = fd
		}
	}
	drop := r.batch()
	drop.Call(unix.SYS_CLOSE_RANGE, uintptr(binary.NativeEndian.Uint32(raw)), uintptr(binary.NativeEndian.Uint32(raw[4:])), 0)
	return drop.RunAll(r.Ctx)
}

// fillSocket gives a socket its queue, which its peer sends.
func (r *ProcessRestore) fillSocket(index image.Index) error {
	s := &r.Image.Sockets[index]
	fd := r.sockets[index]
	peer, lost := r.lostPeers[index]
	if !lost {
		peer = r.sockets[s.Peer]
	}
	if err := unix.SetNonblock(peer, true); err != nil {
		return err
	}
	if len(s.Queue) > 0 {
		// Room for all of it at once; the sender's own size is set at the end.
		if err := unix.SetsockoptInt(peer, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 1<<30); err != nil {
			return err
		}
	}
	for _, m := range s.Queue {
		var control []byte
		if m.PID != 0 {
			control = unix.UnixCredentials(&unix.Ucred{Pid: int32(m.PID), Uid: m.UID, Gid: m.GID})
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PASSCRED, 1); err != nil {
				return err
			}
		}
		n, err := unix.SendmsgN(peer, m.Data, control, nil, unix.MSG_DONTWAIT)
		if err != nil || n != len(m.Data) {
			return fmt.Errorf("%d of %d bytes: %w", n, len(m.Data), err)
		}
	}
	return nil
}

// finishSocket gives a socket its options and shuts down what was shut down.
func (r *ProcessRestore) finishSocket(index image.Index) error {
	s, fd := &r.Image.Sockets[index], r.sockets[index]
	if err := r.setSocketOptions(fd, s.Options); err != nil {
		return err
	}
	if peer, lost := r.lostPeers[index]; lost {
		delete(r.lostPeers, index)
		return unix.Close(peer)
	}
	if how, ok := map[int]int{1: unix.SHUT_RD, 2: unix.SHUT_WR, 3: unix.SHUT_RDWR}[s.Shutdown]; ok {
		return unix.Shutdown(fd, how)
	}
	return nil
}

func (r *TreeRestore) setSocketOptions(fd int, options []image.Option) error {
	for _, o := range options {
		name, value := o.Name, string(o.Value)
		switch name {
		case unix.SO_SNDBUF, unix.SO_RCVBUF:
			// The kernel doubles what it is given (socket(7)), and the limits on it
			// do not hold for what it was able to have at the source.
			if len(o.Value) != 4 {
				return fmt.Errorf("option %d has %d bytes", name, len(o.Value))
			}
			name = map[int]int{unix.SO_SNDBUF: unix.SO_SNDBUFFORCE, unix.SO_RCVBUF: unix.SO_RCVBUFFORCE}[name]
			value = string(binary.NativeEndian.AppendUint32(nil, binary.NativeEndian.Uint32(o.Value)/2))
		}
		if err := unix.SetsockoptString(fd, o.Level, name, value); err != nil {
			return fmt.Errorf("option %d: %w", o.Name, err)
		}
	}
	return nil
}
