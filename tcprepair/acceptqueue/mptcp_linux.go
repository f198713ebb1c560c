package acceptqueue

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/tcprepair"
	"github.com/pagurus-project/pagurus/tcprepair/inet"
)

// putByHelper puts a connection into a listener of MPTCP, which the kernel makes none for
// from an acknowledgement. It makes it for a listener of plain TCP beside that one, in one
// group with it (SO_REUSEPORT); when the helper is closed, what waits in it goes over to the
// other listener of the group (net.ipv4.tcp_migrate_req, Documentation/networking/ip-sysctl.rst).
func (f *Filler) putByHelper(listener int, s *tcprepair.Socket) (err error) {
	grouped, err := inet.GetInt(listener, unix.SOL_SOCKET, unix.SO_REUSEPORT)
	switch {
	case err != nil:
		return fmt.Errorf("reading SO_REUSEPORT: %w", err)
	case grouped != 0: // it could go over to any of them
		return fmt.Errorf("a connection of a listener of MPTCP with SO_REUSEPORT %w", tcprepair.ErrUnsupported)
	}
	if err := inet.SetInt(listener, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
		return fmt.Errorf("setting SO_REUSEPORT: %w", err)
	}
	defer func() { err = errors.Join(err, inet.SetInt(listener, unix.SOL_SOCKET, unix.SO_REUSEPORT, 0)) }()
	had, waiting, err := tcprepair.Look(listener)
	if err != nil {
		return err
	}
	had.MPTCP = false
	helper, err := tcprepair.Restore(had, false)
	if err != nil {
		return fmt.Errorf("making a listener beside it: %w", err)
	}
	// Allowed before there is a connection: without that, to close the helper is to reset it.
	forbid, err := allow(migrateSetting)
	if err != nil {
		return errors.Join(err, unix.Close(helper))
	}
	err = f.putInto(helper, s)
	if err := errors.Join(err, unix.Close(helper), forbid()); err != nil {
		return err
	}
	_, now, err := tcprepair.Look(listener)
	if err == nil && now != waiting+1 {
		err = fmt.Errorf("%w: %d connections wait after %d", ErrIncomplete, now, waiting)
	}
	return err
}
