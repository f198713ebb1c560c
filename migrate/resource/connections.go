package resource

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/tcprepair"
)

// A Connection is a TCP socket that has a connection, or had one, in a process that
// stands still. It is plain data, to be kept for who takes over from an agent that died.
type Connection struct {
	PID  int               `json:"pid"`
	FD   int               `json:"fd"` // one of its descriptors there
	Rest *tcprepair.Socket `json:"rest"`
}

func (c Connection) String() string {
	return fmt.Sprintf("the TCP connection of %v and %v (descriptor %d of process %d)", c.Rest.Local, c.Rest.Remote, c.FD, c.PID)
}

// Connections lists those of an image.
func Connections(m *image.Image) []Connection {
	var all []Connection
	eachConnection(m, func(pid, fd int, f *image.File) error {
		all = append(all, Connection{pid, fd, f.TCP.Rest()})
		return nil
	})
	return all
}

// eachConnection calls f for each until that fails.
func eachConnection(m *image.Image, f func(pid, fd int, file *image.File) error) error {
	seen := make(map[image.Index]bool)
	for i := range m.Processes {
		p := &m.Processes[i]
		for _, d := range p.Descriptors {
			file := &m.Files[d.File]
			if seen[d.File] || file.TCP == nil || !hasConnection(file.TCP) {
				continue
			}
			seen[d.File] = true
			if err := f(p.PID, d.FD, file); err != nil {
				return err
			}
		}
	}
	return nil
}

// hasConnection reports a socket that cannot be read as it is: it takes repair mode.
func hasConnection(s *tcprepair.Socket) bool { return s.State.Connected() || s.Ended }

// DumpConnections reads those of an image for good, in place of what was seen of them
// before. Their packets are held, and their processes do not run any more: they stay in
// repair mode, until ResumeConnections.
func DumpConnections(m *image.Image) error {
	return eachConnection(m, func(pid, fd int, f *image.File) error {
		own, err := borrow(pid, fd)
		if err != nil {
			return err
		}
		defer unix.Close(own)
		s, err := tcprepair.Dump(own)
		if err != nil {
			return fmt.Errorf("reading the TCP connection of %v and %v: %w", f.TCP.Local, f.TCP.Remote, err)
		}
		f.TCP = s
		return nil
	})
}

// ResumeConnections makes connections go on where DumpConnections may have read them,
// before their processes do. It may be repeated. What is lost is returned.
func ResumeConnections(all []Connection) (lost []error) { return forEach(all, tcprepair.Resume) }

// ActivateConnections lets restored connections live, before their processes do. Their
// addresses are the host's by now. It may be repeated. What is lost is returned.
func ActivateConnections(all []Connection) (lost []error) {
	return forEach(all, func(fd int, s *tcprepair.Socket) error {
		if err := tcprepair.Arrive(fd, s); err != nil {
			return err
		}
		return tcprepair.Activate(fd, s)
	})
}

func forEach(all []Connection, f func(fd int, s *tcprepair.Socket) error) (failed []error) {
	for _, c := range all {
		own, err := borrow(c.PID, c.FD)
		if errors.Is(err, unix.ESRCH) {
			continue // the process was killed, and has no connections any more
		}
		if err == nil {
			err = errors.Join(f(own, c.Rest), unix.Close(own))
		}
		if err != nil {
			failed = append(failed, fmt.Errorf("%v: %w", c, err))
		}
	}
	return failed
}

// Unsettled is what the kernel still does by itself for connections that no process can
// help it with. All of it passes.
type Unsettled struct {
	Handshakes []string // connections at addresses that go along that have begun
	Closed     []string // those that the program has closed, and that have not come to an end
	Waiting    []string // connections to listeners that the program has not accepted yet
}

// FindUnsettled looks for that.
func FindUnsettled(along []netip.Prefix, listeners []netip.AddrPort) (Unsettled, error) {
	var u Unsettled
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		sockets, err := netlink.SocketDiagTCP(family)
		if err != nil {
			return u, fmt.Errorf("listing TCP sockets: %w", err)
		}
		for _, s := range sockets {
			if s.INode == 0 {
				u.add(s, along, listeners)
			}
		}
	}
	return u, nil
}

func (u *Unsettled) add(s *netlink.Socket, along []netip.Prefix, listeners []netip.AddrPort) {
	local := endpointOf(s.ID.Source, s.ID.SourcePort)
	goes := slices.ContainsFunc(along, func(p netip.Prefix) bool { return p.Addr() == local.Addr() })
	heard := slices.ContainsFunc(listeners, func(l netip.AddrPort) bool {
		a := l.Addr().Unmap()
		return l.Port() == local.Port() && (a == local.Addr() || a.IsUnspecified() && (a.Is6() || local.Addr().Is4()))
	})
	what := fmt.Sprintf("%v and %v", local, endpointOf(s.ID.Destination, s.ID.DestinationPort))
	switch s.State {
	case unix.BPF_TCP_SYN_RECV:
		if goes {
			u.Handshakes = append(u.Handshakes, what)
		}
	case unix.BPF_TCP_FIN_WAIT1, unix.BPF_TCP_CLOSING, unix.BPF_TCP_LAST_ACK:
		if goes {
			u.Closed = append(u.Closed, what)
		}
	case unix.BPF_TCP_ESTABLISHED, unix.BPF_TCP_CLOSE_WAIT: // nobody has them yet
		if goes || heard {
			u.Waiting = append(u.Waiting, what)
		}
	}
}

// Listeners are where the sockets of an image listen.
func Listeners(m *image.Image) []netip.AddrPort {
	var all []netip.AddrPort
	for i := range m.Files {
		if s := m.Files[i].TCP; s != nil && s.State == tcprepair.Listen {
			all = append(all, s.Local)
		}
	}
	return all
}

func endpointOf(ip []byte, port uint16) netip.AddrPort {
	a, _ := netip.AddrFromSlice(ip)
	return netip.AddrPortFrom(a.Unmap(), port)
}

// isAlong reports an address that goes along with the tree. At preflight it is not known
// which of the host's service addresses those are; with a connection they are.
func (d *TreeDump) isAlong(a netip.Addr) bool {
	return slices.ContainsFunc(d.Addresses, func(p netip.Prefix) bool { return p.Addr() == a.Unmap() })
}
