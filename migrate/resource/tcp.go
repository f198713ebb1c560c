package resource

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/tcprepair"
)

// tcpSocket: a socket of TCP (tcp(7)). One that listens, is bound or new is left as it
// is at the source; those with connections follow later (connections.go).
var tcpSocket = fileKind{
	check: func(c *Check, f *image.File) {
		if hasConnection(f.TCP) {
			return // its address and port may be another socket's, too
		}
		c.mustBind(f.TCP.Local, tcprepair.CanBind(f.TCP, comesAlong(c.Image, f)))
	},
	open: func(r *TreeRestore, f *image.File) (int, error) {
		if err := r.restoreConnections(); err != nil {
			return 0, err
		}
		if fd, ok := r.connections[f]; ok {
			delete(r.connections, f)
			return fd, nil
		}
		return r.restoreTCP(f)
	},
}

// mustBind reports why a socket would not get its local address here, if there is an error.
func (c *Check) mustBind(local netip.AddrPort, err error) {
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		c.Block(migrate.CodeAddressTaken, "end what uses the port there, or choose another host", "a socket of the process is bound to %v, which is in use there", local)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		c.Block(migrate.CodeAddressMissing, "bind it to no particular address, or to a service address (migratectl address), or choose a host that has this one",
			"a socket of the process is bound to, or connected from, %v, an address that the host does not have", local)
	case err != nil:
		c.Block(migrate.CodeDescriptor, "choose another host", "a socket of the process that is bound to %v cannot be made there: %v", local, err)
	}
}

// localOf is the local address of a socket of an internet family, if it has one.
func localOf(f *image.File) netip.AddrPort {
	switch {
	case f.TCP != nil:
		return f.TCP.Local
	case f.UDP != nil:
		return f.UDP.Local
	case f.Raw != nil:
		return f.Raw.Local
	}
	return netip.AddrPort{}
}

// comesAlong reports a socket that is bound to a service address that goes along:
// the destination has it when the process runs there, and not before.
func comesAlong(m *image.Image, f *image.File) bool {
	return IsAmong(m.Addresses, localOf(f).Addr())
}

// An inetKind is what a socket of the internet families is.
type inetKind struct{ typ, protocol int }

func (k inetKind) isTCP() bool {
	// A raw one can be of TCP, too. Go programs listen with MPTCP.
	return k.typ == unix.SOCK_STREAM && (k.protocol == unix.IPPROTO_TCP || k.protocol == unix.IPPROTO_MPTCP)
}

func (k inetKind) isUDP() bool { return k.typ == unix.SOCK_DGRAM && k.protocol == unix.IPPROTO_UDP }

// isRaw reports raw sockets and those of ping.
func (k inetKind) isRaw() bool {
	return k.typ == unix.SOCK_RAW || k.typ == unix.SOCK_DGRAM && (k.protocol == unix.IPPROTO_ICMP || k.protocol == unix.IPPROTO_ICMPV6)
}

// inetKindOf is the zero value for sockets of other families.
func inetKindOf(fd, family int) (k inetKind, err error) {
	if family != unix.AF_INET && family != unix.AF_INET6 {
		return k, nil
	}
	if k.typ, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err == nil {
		k.protocol, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	}
	return k, err
}

// dumpTCP reads one, by fd, a descriptor of ours: of those with connections what can be
// read while their packets come in.
func dumpTCP(d *ProcessDump, o *openFile, f *image.File, fd int, refuse func(what, hint string)) error {
	if elsewhere, err := d.isElsewhere(fd, "a TCP socket", refuse); elsewhere || err != nil {
		return err
	}
	s, waiting, err := tcprepair.Look(fd)
	switch {
	case errors.Is(err, tcprepair.ErrUnsupported):
		refuse(err.Error(), "close it before the move")
		return nil
	case err != nil:
		return fmt.Errorf("reading a TCP socket: %w", err)
	case s.Ended && !d.isAlong(s.Local.Addr()):
		refuse(fmt.Sprintf("a TCP socket at %v, which is no service address, whose connection has ended", s.Local),
			"have the clients connect to a service address, which goes along (migratectl address), or close it before the move")
		return nil
	case hasConnection(s) && boundToDevice(fd):
		refuse(fmt.Sprintf("a TCP connection of %v that is bound to a device", s.Local), "close it before the move")
		return nil
	case waiting > 0 && d.Inspect && !d.canWait(s.Local.Addr()): // they may have been accepted by the time of the freeze
		d.Warn(migrate.CodeDescriptor, "let the program accept them first", "%d connections wait in %v, which listens at %v", waiting, o, s.Local)
	}
	f.Kind, f.TCP = image.FileTCP, s
	return nil
}

// boundToDevice reports a socket that gets nothing by another device (SO_BINDTODEVICE):
// what was held comes by the loopback device.
func boundToDevice(fd int) bool {
	device, err := unix.GetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE)
	return err == nil && device != ""
}

// isElsewhere refuses a socket that is not of this process's network namespace.
func (d *TreeDump) isElsewhere(fd int, what string, refuse func(what, hint string)) (bool, error) {
	network, err := networkOf(fd)
	if err != nil {
		return false, err
	}
	ours, err := d.isOwnNetwork(network)
	if err == nil && !ours {
		refuse(what+" of another network namespace", "close it before the move")
	}
	return !ours, err
}

// isOwnNetwork reports the cookie of this process's network namespace.
func (d *TreeDump) isOwnNetwork(network uint64) (bool, error) {
	if d.network == 0 {
		own, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return false, err
		}
		defer unix.Close(own)
		if d.network, err = networkOf(own); err != nil {
			return false, err
		}
	}
	return network == d.network, nil
}

// networkOf identifies the network namespace of a socket.
func networkOf(fd int) (uint64, error) {
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0, fmt.Errorf("asking for a socket's network: %w", err)
	}
	return cookie, nil
}
