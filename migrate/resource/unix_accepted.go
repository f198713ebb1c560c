package resource

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/migrate/unixsock"
)

// An accepted socket has its listener's name (unix_stream_connect, net/unix/af_unix.c), and of
// an abstract one there can be no second: one that is accepted gets it in no other way. So its
// connection is made again by that name.

// unixSocketFound is a unix socket of a process, and what it is in the image.
type unixSocketFound struct {
	file       *openFile
	state      unixsock.State
	index      image.Index
	connection bool // of a stream or of packets, also one that has ended
}

// connectUnixSockets finds out how the unix sockets of a process belong together.
func (d *ProcessDump) connectUnixSockets() error {
	for i := range d.unixEnds {
		if err := d.noteAccepted(&d.unixEnds[i]); err != nil {
			return err
		}
	}
	for _, e := range d.unixEnds {
		if e.state.Peer == 0 {
			continue
		}
		if err := d.connectUnix(e.file, e.state, e.index); err != nil {
			return err
		}
	}
	return nil
}

// noteAccepted finds out whether an end of a connection has its abstract name from a listener,
// or because it was bound to it. The kernel does not tell, but nobody else can have the name of
// one that was bound.
func (d *ProcessDump) noteAccepted(e *unixSocketFound) error {
	s := &d.image.Sockets[e.index]
	if !e.connection || !isAbstract(s.Name) {
		return nil
	}
	for i := range d.unixEnds {
		if holds := &d.unixEnds[i]; !holds.connection && sameName(&holds.state, s) {
			s.Accepted = true
			return nil
		}
	}
	if d.Inspect {
		return nil // to try it could be in the program's way
	}
	// The program does not run: whether somebody has the name is tried.
	err := tryUnix(s.Type, func(fd int) error {
		name := unixsock.Staged{Name: s.Name}
		return name.Bind(fd, unixsock.Access{})
	})
	if err == nil || !errors.Is(err, unix.EADDRINUSE) {
		s.Accepted = err == nil
		return err
	}
	all, err := unixsock.List()
	if err != nil {
		return err
	}
	others := 0
	for i := range all {
		switch other := &all[i]; {
		case other.Inode == e.state.Inode || !sameName(other, s):
		case other.Status == unixsock.Connected:
			others++
		default:
			s.Accepted = true // the other one was bound to it
			return nil
		}
	}
	if others > 0 {
		d.Block(migrate.CodeDescriptor, "close it before the move", "%v, %s, is one of several connections with the abstract name %s, one of which was bound to it", e.file, e.file.link, printable(s.Name))
	}
	return nil
}

// sameName reports whether a socket has the name of another one. Each type has names of its
// own (unix_abstract_hash).
func sameName(state *unixsock.State, s *image.Socket) bool {
	return state.Type == s.Type && bytes.Equal(state.Name, s.Name)
}

// acceptedFrom lists those that have their name from this socket.
func (r *TreeRestore) acceptedFrom(listener *image.Socket) (all []image.Index) {
	for i := range r.Image.Sockets {
		if s := &r.Image.Sockets[i]; s.Accepted && s.Type == listener.Type && bytes.Equal(s.Name, listener.Name) {
			all = append(all, i)
		}
	}
	return all
}

// makeOrphans makes the connections whose listener the tree does not have any more, each name's
// by a listener that is there for that moment alone. That has to be before the name is given
// to a socket that has it now.
func (r *ProcessRestore) makeOrphans() error {
	for i := range r.Image.Sockets {
		s := &r.Image.Sockets[i]
		if _, made := r.sockets[i]; made || !s.Accepted || r.hasListener(s) {
			continue
		}
		if err := r.makeOrphansOf(s); err != nil {
			return fmt.Errorf("making connections of the unix socket %q: %w", s.Name, err)
		}
	}
	return nil
}

func (r *TreeRestore) hasListener(accepted *image.Socket) bool {
	for i := range r.Image.Sockets {
		if s := &r.Image.Sockets[i]; s.Listens && s.Type == accepted.Type && bytes.Equal(s.Name, accepted.Name) {
			return true
		}
	}
	return false
}

func (r *ProcessRestore) makeOrphansOf(s *image.Socket) (err error) {
	listener, err := r.leader().Syscall(r.Ctx, unix.SYS_SOCKET, unix.AF_UNIX, uintptr(s.Type), 0)
	if err != nil {
		return err
	}
	own, err := borrow(r.Process.PID, int(listener))
	if err != nil {
		return err
	}
	defer func() {
		_, closing := r.leader().Syscall(r.Ctx, unix.SYS_CLOSE, listener)
		err = errors.Join(err, closing, unix.Close(own))
	}()
	name := unixsock.Staged{Name: s.Name}
	if err := name.Bind(own, unixsock.Access{}); err != nil {
		return err
	}
	return r.makeAccepted(listener, own, r.acceptedFrom(s))
}

// makeListeners makes those whose name connections have, which are made with them.
func (r *ProcessRestore) makeListeners() error {
	for i := range r.Image.Sockets {
		s := &r.Image.Sockets[i]
		if _, made := r.sockets[i]; made || !s.Listens || len(r.acceptedFrom(s)) == 0 {
			continue
		}
		if err := r.makeSocket(i); err != nil {
			return fmt.Errorf("making the unix socket %q: %w", s.Name, err)
		}
	}
	return nil
}

// makeAccepted makes connections by a listener that has their name, listener in the shell and
// own here. Each end sees the other as the user as whom that has called listen(2) or connect(2).
// Who else connects meanwhile is turned away.
func (r *ProcessRestore) makeAccepted(listener uintptr, own int, all []image.Index) error {
	for _, index := range all {
		s := &r.Image.Sockets[index]
		client, err := r.leader().Syscall(r.Ctx, unix.SYS_SOCKET, unix.AF_UNIX, uintptr(s.Type|unix.SOCK_NONBLOCK), 0)
		if err != nil {
			return err
		}
		ownClient, err := borrow(r.Process.PID, int(client))
		if err != nil {
			return err
		}
		seen := s // of a client that has gone nobody asks
		if s.Peer == image.None {
			r.lostPeers[index] = ownClient
		} else {
			r.sockets[s.Peer], seen = ownClient, &r.Image.Sockets[s.Peer]
			if err := r.nameSocket(s.Peer); err != nil {
				return err
			}
		}
		b := r.batch()
		address := binary.NativeEndian.AppendUint16(nil, unix.AF_UNIX)
		address = append(address, s.Name...)
		at := b.Bytes(address)
		asPeer(b, seen, func() { b.Call(unix.SYS_LISTEN, listener, unix.SOMAXCONN) })
		asPeer(b, s, func() { b.Call(unix.SYS_CONNECT, client, at, uintptr(len(address))) })
		b.Call(unix.SYS_CLOSE, client)
		if err := b.RunAll(r.Ctx); err != nil {
			return err
		}
		accepted, err := unixsock.Accept(own, ownClient)
		if err != nil {
			return err
		}
		r.sockets[index] = accepted
	}
	return nil
}
