package acceptqueue

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/tcprepair"
	"github.com/pagurus-project/pagurus/tcprepair/inet"
)

// putByHelper puts a connection into a listener of MPTCP, which the kernel makes none for
// from an acknowledgement. It makes it for a listener of plain TCP beside that one, in one
// group with it (SO_REUSEPORT); when the helper is closed, what waits in it goes over to the
// other listener of the group (net.ipv4.tcp_migrate_req, inet_csk_listen_stop).
func (f *Filler) putByHelper(listener int, s *tcprepair.Socket) error {
	before, waiting, err := tcprepair.Look(listener)
	if err != nil {
		return err
	}
	// In a group are sockets of one user. Whose the kernel takes that of MPTCP's for it does
	// not tell: its owner's, if he has made it, or ours, if we have given it to him.
	for _, uid := range []uint32{before.UID, uint32(os.Geteuid())} {
		if err = f.putBeside(listener, before, uid, s); !errors.Is(err, errAlone) {
			break
		}
	}
	switch {
	case errors.Is(err, errAlone):
		return fmt.Errorf("a listener of MPTCP that shares its port with others %w", tcprepair.ErrUnsupported)
	case err != nil:
		return err
	}
	_, now, err := tcprepair.Look(listener)
	if err == nil && now != waiting+1 {
		err = fmt.Errorf("%w: %d connections wait after %d", ErrIncomplete, now, waiting)
	}
	return err
}

// errAlone: helper and listener are in no group, or others are in it.
const errAlone = unix.EXDEV

func (f *Filler) putBeside(listener int, is *tcprepair.Socket, uid uint32, s *tcprepair.Socket) error {
	helper, err := beside(listener, is, uid, s)
	if err != nil {
		return fmt.Errorf("making a listener beside it: %w", err)
	}
	// Allowed before there is a connection: without that, to close the helper is to reset it.
	forbid, err := allow(migrateSetting)
	if err != nil {
		return errors.Join(err, unix.Close(helper))
	}
	const both = 2
	err = f.putInto(helper, s, both)
	return errors.Join(err, unix.Close(helper), forbid())
}

// beside makes a listener of plain TCP, of a user, in one group with another listener. It
// has the options of the connection, which is to have them from it.
func beside(listener int, is *tcprepair.Socket, uid uint32, s *tcprepair.Socket) (fd int, err error) {
	grouped, err := inet.GetInt(listener, unix.SOL_SOCKET, unix.SO_REUSEPORT)
	if err != nil {
		return -1, fmt.Errorf("reading SO_REUSEPORT: %w", err)
	}
	if err := shared(listener, 1); err != nil {
		return -1, err
	}
	defer func() {
		if err = errors.Join(err, shared(listener, grouped)); err != nil && fd >= 0 {
			err = errors.Join(err, unix.Close(fd))
			fd = -1
		}
	}()
	helper := tcprepair.Socket{
		State: tcprepair.Listen, IPv6: is.IPv6, Local: is.Local, UID: uid, GID: is.GID, Backlog: 1,
		Buffers: s.Buffers, Filter: s.Filter,
	}
	for _, o := range s.Options {
		if o.Level == unix.SOL_SOCKET && o.Name == unix.SO_REUSEPORT {
			o.Value = binary.NativeEndian.AppendUint32(nil, 1)
		}
		helper.Options = append(helper.Options, o)
	}
	return tcprepair.Restore(&helper, false)
}
