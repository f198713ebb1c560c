package resource

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/migrate/unixsock"
	"github.com/pagurus-project/pagurus/parasite"
)

// makeUnixSockets makes all unix sockets, in the shell, so that each end of a connection
// knows the right process as its peer (SO_PEERCRED).
func (r *ProcessRestore) makeUnixSockets() error {
	if err := r.makeOrphans(); err != nil {
		return err
	}
	if err := r.makeListeners(); err != nil {
		return err
	}
	for i := range r.Image.Sockets {
		if _, ok := r.sockets[i]; ok {
			continue
		}
		make, what := r.makeSocketPair, "pair"
		if s := &r.Image.Sockets[i]; s.Peer == image.None && !s.Ended {
			make, what = r.makeSocket, string(s.Name)
		}
		if err := make(i); err != nil {
			return fmt.Errorf("making the unix socket %q: %w", what, err)
		}
	}
	return nil
}

// fillUnixSockets fills their queues, and sets them up. What the process has open is there, as
// it may be on its way, too.
func (r *ProcessRestore) fillUnixSockets() error {
	for i := range r.Image.Sockets {
		if err := r.fillSocket(i); err != nil {
			return fmt.Errorf("filling a unix socket: %w", err)
		}
	}
	// All queues are filled before any end is shut down or connected: others can send
	// nothing then.
	for i := range r.Image.Sockets {
		if err := r.finishSocket(i); err != nil {
			return fmt.Errorf("setting up a unix socket: %w", err)
		}
	}
	return nil
}

// asPeer adds a call that is made as the user whom the other end is to see.
func asPeer(b *parasite.Batch, s *image.Socket, call func()) {
	none := ^uintptr(0)
	b.Call(unix.SYS_SETRESGID, none, uintptr(s.PeerGID), none)
	b.Call(unix.SYS_SETRESUID, none, uintptr(s.PeerUID), none)
	call()
	b.Call(unix.SYS_SETRESUID, none, 0, none)
	b.Call(unix.SYS_SETRESGID, none, 0, none)
}

// makeSocket makes one without a connection. Who connects to it sees who has called
// listen(2).
func (r *ProcessRestore) makeSocket(index image.Index) error {
	s := &r.Image.Sockets[index]
	fd, err := r.leader().Syscall(r.Ctx, unix.SYS_SOCKET, unix.AF_UNIX, uintptr(s.Type), 0)
	if err != nil {
		return err
	}
	own, err := borrow(r.Process.PID, int(fd))
	if err != nil {
		return err
	}
	r.sockets[index] = own
	if err := r.nameSocket(index); err != nil {
		return err
	}
	if s.Listens {
		if err := r.makeAccepted(fd, own, r.acceptedFrom(s)); err != nil {
			return err
		}
	}
	b := r.batch()
	if s.Listens {
		asPeer(b, s, func() { b.Call(unix.SYS_LISTEN, fd, uintptr(s.Backlog)) })
	}
	b.Call(unix.SYS_CLOSE, fd)
	return b.RunAll(r.Ctx)
}

// nameSocket gives a socket its name, under which others find it later (Arrival).
func (r *ProcessRestore) nameSocket(index image.Index) error {
	for i := range r.arrival.Names {
		n := &r.arrival.Names[i]
		if n.Socket != index {
			continue
		}
		var access unixsock.Access
		if f := r.Image.Sockets[index].File; f != nil {
			access = unixsock.Access{Mode: f.Mode, UID: f.UID, GID: f.GID}
		}
		return n.Staged.Bind(r.sockets[index], access)
	}
	return nil
}

func (r *ProcessRestore) makeSocketPair(index image.Index) error {
	s := &r.Image.Sockets[index]
	b := r.batch()
	out := b.Space(8)
	asPeer(b, s, func() { b.Call(unix.SYS_SOCKETPAIR, unix.AF_UNIX, uintptr(s.Type), 0, out) })
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
			continue
		}
		r.sockets[end] = fd
		if err := r.nameSocket(end); err != nil {
			return err
		}
	}
	drop := r.batch()
	drop.Call(unix.SYS_CLOSE_RANGE, uintptr(binary.NativeEndian.Uint32(raw)), uintptr(binary.NativeEndian.Uint32(raw[4:])), 0)
	return drop.RunAll(r.Ctx)
}

// fillSocket gives a socket its queue, which its peer sends, or a sender that is made for
// each message.
func (r *ProcessRestore) fillSocket(index image.Index) error {
	s := &r.Image.Sockets[index]
	fd := r.sockets[index]
	peer, ok := r.lostPeers[index]
	if !ok && s.Peer != image.None {
		peer, ok = r.sockets[s.Peer], true
	}
	for _, m := range s.Queue {
		if err := r.sendTo(fd, peer, ok, &m); err != nil {
			return err
		}
	}
	return nil
}

// sendTo puts a message into a socket's queue.
func (r *ProcessRestore) sendTo(fd, peer int, hasPeer bool, m *image.Message) (err error) {
	if !hasPeer {
		var done func() error
		if peer, done, err = r.senderTo(fd, m.From); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, done()) }()
	}
	// Room for all of it at once; the sender's own size is set at the end.
	if err := unix.SetsockoptInt(peer, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 1<<30); err != nil {
		return err
	}
	known := 0
	if m.Known {
		known = 1
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PASSCRED, known); err != nil {
		return err
	}
	rights, err := r.rightsOf(m)
	if err != nil {
		return err
	}
	if !m.Known {
		return sendWith(peer, m, rights)
	}
	credentials := unix.Ucred{Pid: int32(m.PID), Uid: m.UID, Gid: m.GID}
	err = unix.ESRCH
	if m.PID != 0 {
		err = sendWith(peer, m, append(unix.UnixCredentials(&credentials), rights...))
	}
	if errors.Is(err, unix.ESRCH) { // of a process that this host does not have
		credentials.Pid = int32(os.Getpid())
		err = sendWith(peer, m, append(unix.UnixCredentials(&credentials), rights...))
	}
	return err
}

// rightsOf is the control message of the descriptors that are on their way with a message.
func (r *ProcessRestore) rightsOf(m *image.Message) ([]byte, error) {
	if len(m.Passed) == 0 {
		return nil, nil
	}
	var fds []int
	for _, index := range m.Passed {
		if err := r.openFile(index); err != nil {
			return nil, err
		}
		fds = append(fds, r.files[index])
	}
	return unix.UnixRights(fds...), nil
}

func sendWith(peer int, m *image.Message, control []byte) error {
	n, err := unix.SendmsgN(peer, m.Data, control, nil, unix.MSG_DONTWAIT)
	if err != nil || n != len(m.Data) {
		return fmt.Errorf("%d of %d bytes: %w", n, len(m.Data), err)
	}
	return nil
}

// senderTo finds or makes a datagram socket of that name, and connects it to another one until
// done is called. A name that somebody else has here is left out.
func (r *ProcessRestore) senderTo(fd int, name []byte) (sender int, done func() error, err error) {
	for i := range r.Image.Sockets {
		own, ok := r.sockets[i]
		if ok && len(name) > 0 && name[0] == 0 && bytes.Equal(r.Image.Sockets[i].Name, name) {
			return own, func() error { return unixsock.Disconnect(own) }, unixsock.ConnectTo(own, fd)
		}
	}
	staged, err := unixsock.PlanUnlinked(name, os.TempDir())
	if err != nil {
		return -1, nil, err
	}
	if sender, err = unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return -1, nil, err
	}
	done = func() error { return unix.Close(sender) }
	err = staged.Bind(sender, unixsock.Access{})
	if err == nil || errors.Is(err, unix.EADDRINUSE) {
		err = unixsock.ConnectTo(sender, fd)
	}
	if err != nil {
		return -1, nil, errors.Join(err, done())
	}
	return sender, done, nil
}

// finishSocket gives a socket its options and shuts down what was shut down.
func (r *ProcessRestore) finishSocket(index image.Index) error {
	s, fd := &r.Image.Sockets[index], r.sockets[index]
	// A socket that wants credentials is given a name when it connects (unix_autobind).
	var err error
	switch {
	case s.To != image.None:
		err = unixsock.ConnectTo(fd, r.sockets[s.To])
	case len(s.ToName) > 0:
		err = unixsock.Connect(fd, s.ToName)
	}
	if err == nil {
		err = r.setSocketOptions(fd, s.Options)
	}
	if err != nil {
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
