package resource

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/tcprepair"
)

// A Connection is a TCP socket that has a connection, or had one, in a process that
// stands still. It is plain data, to be kept for who takes over from an agent that died.
type Connection struct {
	PID  int               `json:"pid"`
	FD   int               `json:"fd"`   // one of its descriptors there
	Rest *tcprepair.Socket `json:"rest"` // as much of it as is needed for what is to be done
}

func (c Connection) String() string {
	return fmt.Sprintf("the TCP connection of %v and %v (descriptor %d of process %d)", c.Rest.Local, c.Rest.Remote, c.FD, c.PID)
}

// ToResume lists those of an image, for ResumeConnections.
func ToResume(m *image.Image) []Connection { return connections(m, (*tcprepair.Socket).Undo) }

// connections lists them, with a part of each.
func connections(m *image.Image, part func(*tcprepair.Socket) *tcprepair.Socket) []Connection {
	var all []Connection
	eachConnection(m, func(pid, fd int, f *image.File) { all = append(all, Connection{pid, fd, part(f.TCP)}) })
	return all
}

// eachConnection calls f for each.
func eachConnection(m *image.Image, f func(pid, fd int, file *image.File)) {
	for _, h := range heldFiles(m, isConnection) {
		f(h.pid, h.fd, h.File)
	}
}

// A heldFile is an open file, with a process and a descriptor that it has there.
type heldFile struct {
	pid, fd int
	*image.File
}

// heldFiles lists some of those of an image.
func heldFiles(m *image.Image, which func(*image.File) bool) (all []heldFile) {
	eachFile(m, func(pid, fd int, f *image.File) {
		if which(f) {
			all = append(all, heldFile{pid, fd, f})
		}
	})
	return all
}

// eachFile calls f for each open file, with a process and a descriptor that it has there.
func eachFile(m *image.Image, f func(pid, fd int, file *image.File)) {
	seen := make(map[image.Index]bool)
	for i := range m.Processes {
		p := &m.Processes[i]
		for _, d := range p.Descriptors {
			if !seen[d.File] {
				seen[d.File] = true
				f(p.PID, d.FD, &m.Files[d.File])
			}
		}
	}
}

func isConnection(f *image.File) bool { return f.TCP != nil && hasConnection(f.TCP) }

// hasConnection reports a socket that cannot be read as it is: it takes repair mode.
func hasConnection(s *tcprepair.Socket) bool { return s.State.Connected() || s.Ended }

// WarnConnections tells what of those of an image begins anew.
func (d *TreeDump) WarnConnections(m *image.Image) {
	if n := len(ToResume(m)); n > 0 {
		d.Warn(migrate.CodeRecreated, "nothing has to be done", "of %d TCP connections the kernel hands over all but the congestion window, "+
			"the estimate of the round-trip time and segments out of order: they begin anew, and the peer sends the last again; who is just connecting does that again", n)
	}
	d.warnStaying(m)
	d.warnUnread(m)
	if n := len(slices.DeleteFunc(slices.Clone(m.Files), func(f image.File) bool { return f.UDP == nil })); n > 0 {
		d.Warn(migrate.CodeRecreated, "nothing has to be done", "of %d UDP sockets the kernel hands over all but errors that were not told yet (ICMP), "+
			"and of what was not read yet when and through which device it came", n)
	}
}

// DumpConnections reads what is left of those of an image. Their packets are held, and their processes do not run any more: they stay in
// repair mode, until ResumeConnections.
func DumpConnections(m *image.Image) error {
	var here hostAddresses
	if len(StayingFlows(m)) > 0 { // else it is not to cost anything
		var err error
		if here, err = ownAddresses(); err != nil {
			return err
		}
	}
	all := heldFiles(m, isConnection)
	processes := make(lender)
	defer processes.close()
	for _, c := range all {
		if err := processes.open(c.pid); err != nil {
			return err
		}
	}
	return inParallel(len(all), func(i int) error {
		c := all[i]
		own, err := processes.borrow(c.pid, c.fd)
		if err != nil {
			return err
		}
		defer unix.Close(own)
		if err := tcprepair.DumpRest(own, c.TCP); err != nil {
			return fmt.Errorf("reading the TCP connection of %v and %v: %w", c.TCP.Local, c.TCP.Remote, err)
		}
		if stays(m, c.File) && !here.has(c.TCP.Local.Addr()) {
			hideTransparency(c.TCP)
		}
		return nil
	})
}

// restoreConnections makes those of the image in this process, before they are asked for
// one by one.
func (r *TreeRestore) restoreConnections() error {
	if r.connections != nil {
		return nil
	}
	var err error
	if r.restorer, err = tcprepair.NewRestorer(); err != nil {
		return err
	}
	r.connections = make(map[*image.File]int)
	all := heldFiles(r.Image, isConnection)
	var mu sync.Mutex
	return inParallel(len(all), func(i int) error {
		fd, err := r.restoreTCP(all[i].File)
		if err == nil {
			mu.Lock()
			r.connections[all[i].File] = fd
			mu.Unlock()
		}
		return err
	})
}

func (r *TreeRestore) restoreTCP(f *image.File) (int, error) {
	// One that comes home is still passed on from here, its own segments too.
	early := comesAlong(r.Image, f) || stays(r.Image, f) && !f.TCP.Local.Addr().Unmap().IsLoopback()
	fd, err := r.restorer.Restore(f.TCP, early)
	return flagged(f, fd, err)
}

// ResumeConnections makes connections go on where DumpConnections may have read them,
// before their processes do. It may be repeated. What is lost is returned.
func ResumeConnections(all []Connection) (lost []error) { return forEach(all, tcprepair.Resume) }

// forEach calls f for each, several at a time, with a descriptor of ours.
func forEach(all []Connection, f func(fd int, s *tcprepair.Socket) error) (failed []error) {
	processes := make(lender)
	defer processes.close()
	for _, c := range all {
		if err := processes.open(c.PID); err != nil && !errors.Is(err, unix.ESRCH) {
			failed = append(failed, fmt.Errorf("%v: %w", c, err))
		}
	}
	var mu sync.Mutex
	_ = inParallel(len(all), func(i int) error { // has nothing to tell
		c := all[i]
		own, err := processes.borrow(c.PID, c.FD)
		if errors.Is(err, unix.ESRCH) {
			return nil // the process was killed, and has no connections any more
		}
		if err == nil {
			err = errors.Join(f(own, c.Rest), unix.Close(own))
		}
		if err != nil {
			mu.Lock()
			failed = append(failed, fmt.Errorf("%v: %w", c, err))
			mu.Unlock()
		}
		return nil
	})
	return failed
}

// Unsettled is what the kernel still does by itself for connections that no process can
// help it with. All of it passes.
type Unsettled struct {
	Handshakes []string // connections at addresses that go along that have begun
	Closed     []string // those that the program has closed, and that have not come to an end
	// Connections that nobody has accepted yet: to these listeners at addresses that go along,
	// and others, which cannot be handed over.
	Waiting, Stuck []string
}

// Unowned are the TCP sockets of this host that no process has.
type Unowned []*netlink.Socket

// ListUnowned lists them. The kernel goes through all places for sockets that it has: that
// takes some milliseconds on a machine with much memory.
func ListUnowned() (Unowned, error) {
	var all Unowned
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		sockets, err := netlink.SocketDiagTCP(family)
		if err != nil {
			return nil, fmt.Errorf("listing TCP sockets: %w", err)
		}
		all = append(all, slices.DeleteFunc(sockets, func(s *netlink.Socket) bool { return s.INode != 0 })...)
	}
	return all, nil
}

// Unsettled sorts them out.
func (all Unowned) Unsettled(along []netip.Prefix, listeners []netip.AddrPort) Unsettled {
	var u Unsettled
	for _, s := range all {
		u.add(s, along, listeners)
	}
	return u
}

func (u *Unsettled) add(s *netlink.Socket, along []netip.Prefix, listeners []netip.AddrPort) {
	local := endpointOf(s.ID.Source, s.ID.SourcePort)
	goes := IsAmong(along, local.Addr())
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
		switch {
		case goes && heard:
			u.Waiting = append(u.Waiting, what)
		case goes || heard:
			u.Stuck = append(u.Stuck, what)
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
	return IsAmong(d.Addresses, a)
}
