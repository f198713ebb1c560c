package resource

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/tcprepair"
	"github.com/pagurus-project/pagurus/tcprepair/forward"
)

// A connection at an address that does not go along, as it is a host's own, is a guest on all
// other hosts: its home passes on what comes for it (package forward).

// stays reports a socket with a connection at such an address. At a loopback address both ends
// go along: they are at home everywhere.
func stays(m *image.Image, f *image.File) bool {
	return f.TCP != nil && f.TCP.State.Connected() && !comesAlong(m, f)
}

// StayingFlows are the connections of an image whose addresses do not go along.
func StayingFlows(m *image.Image) []forward.Flow {
	var all []forward.Flow
	eachConnection(m, func(_, _ int, f *image.File) {
		if stays(m, f) {
			all = append(all, flowOf(f.TCP))
		}
	})
	return all
}

// flowOf is a connection as it is in packets.
func flowOf(s *tcprepair.Socket) forward.Flow {
	return forward.Plain(forward.Flow{Local: s.Local, Remote: s.Remote})
}

func reversed(f forward.Flow) forward.Flow { return forward.Flow{Local: f.Remote, Remote: f.Local} }

// FromElsewhere are those whose peers are not in the tree: what they send comes to the home.
func FromElsewhere(flows []forward.Flow) []forward.Flow {
	all := setOf(flows)
	return slices.DeleteFunc(slices.Clone(flows), func(f forward.Flow) bool { return all[reversed(f)] })
}

// Connects reports whether processes that run have such connections.
func Connects(pids []int, along []netip.Prefix) (bool, error) {
	own, err := socketsOf(pids)
	if err != nil || len(own) == 0 {
		return false, err
	}
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		sockets, err := netlink.SocketDiagTCP(family)
		if err != nil {
			return false, fmt.Errorf("listing TCP sockets: %w", err)
		}
		for _, s := range sockets {
			local := endpointOf(s.ID.Source, s.ID.SourcePort).Addr()
			if own[s.INode] && !IsAmong(along, local) && s.State != unix.BPF_TCP_LISTEN && s.State != unix.BPF_TCP_CLOSE {
				return true, nil
			}
		}
	}
	return false, nil
}

// ownAddresses are those of this host; of each, whether others of its network have addresses
// like it: service addresses have networks of their own.
func ownAddresses() (hostAddresses, error) {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("listing this host's addresses: %w", err)
	}
	all := make(hostAddresses)
	for _, a := range list {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			all[p.Addr().Unmap()] = !p.IsSingleIP()
		}
	}
	return all, nil
}

type hostAddresses map[netip.Addr]bool

// has reports an address at which this host takes what comes.
func (h hostAddresses) has(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	_, ok := h[a]
	return ok || a.IsLoopback()
}

// checkStaying looks for connections at addresses that do not go along which cannot be passed on.
func (d *TreeDump) checkStaying() error {
	flows := make(map[forward.Flow]bool)
	eachConnection(d.image, func(_, _ int, f *image.File) { flows[flowOf(f.TCP)] = true })
	var own hostAddresses
	var guests map[forward.Flow]bool
	var err error
	eachConnection(d.image, func(pid, fd int, f *image.File) {
		s := f.TCP
		if err != nil || !s.State.Connected() || d.isAlong(s.Local.Addr()) || flows[reversed(flowOf(s))] {
			return
		}
		if own == nil {
			var all map[string][]forward.Flow
			if own, err = ownAddresses(); err == nil {
				all, err = forward.Guests()
			}
			if err != nil {
				return
			}
			guests = setOf(flowsOf(all))
		}
		what, local := "", s.Local.Addr().Unmap().WithZone("")
		shared, home := own[local]
		switch home = home || local.IsLoopback(); {
		case local.IsLinkLocalUnicast():
			what = "at an address that means something on its link alone"
		case home && own.has(s.Remote.Addr()), guests[reversed(flowOf(s))]:
			what = "whose other end is on this host, and does not go along"
		case home && !shared && !local.IsLoopback():
			what = "at a service address that does not go along"
		case !home && !guests[flowOf(s)]:
			what = "which is at another host's address"
		default:
			return
		}
		d.Block(migrate.CodeDescriptor, "close it before the move", "descriptor %d of process %d is a TCP connection of %v and %v, %s", fd, pid, s.Local, s.Remote, what)
	})
	return err
}

// warnStaying tells of those that are passed on.
func (d *TreeDump) warnStaying(m *image.Image) {
	byHome := make(map[netip.Addr]int)
	for _, f := range FromElsewhere(StayingFlows(m)) {
		if !f.Local.Addr().IsLoopback() { // which is in the way
			byHome[f.Local.Addr()]++
		}
	}
	for home, n := range byHome {
		d.Warn(migrate.CodeForwarded, "to be independent of that host, have clients connect to a service address (migratectl address)",
			"%d TCP connections are at %v, which does not go along: the host that has it passes on what comes for them, as long as they live and it runs", n, home)
	}
}

// CheckHomes reports connections that their homes could not pass on to this host.
func (c *Check) CheckHomes() {
	flows := FromElsewhere(StayingFlows(c.Image))
	if len(flows) == 0 {
		return
	}
	own, err := ownAddresses()
	var passed map[forward.Flow]bool
	if err == nil {
		passed, err = passedOn()
	}
	checked := make(map[netip.Addr]bool)
	for _, f := range flows {
		home := f.Local.Addr()
		if checked[home] || err == nil && own.has(home) && passed[f] {
			continue // it comes home
		}
		checked[home] = true
		switch {
		case err != nil:
		case own.has(home):
			err = errors.New("this host has that address, too")
		case passed[reversed(f)]:
			err = fmt.Errorf("this host passes the other end, %v, on to another one", f.Remote)
		default:
			_, err = forward.Reach([]netip.Addr{home})
			if here, _ := HostAddresses(netip.Addr{}); err == nil && len(here) == 0 {
				err = errors.New("this host has no address of its own to pass it on to")
			}
		}
		if err != nil {
			c.Block(migrate.CodeAddressMissing, "choose a host in the network of that address, or have clients connect to a service address (migratectl address)",
				"the process has a TCP connection at %v, and the host that has this address would have to pass on what comes for it: %v", home, err)
			err = nil
		}
	}
}

// passedOn are the flows that this host passes on.
func passedOn() (map[forward.Flow]bool, error) {
	all, err := forward.List()
	if err != nil {
		return nil, err
	}
	flows := make(map[forward.Flow]bool)
	for _, f := range all {
		for _, flow := range f.Flows {
			flows[flow] = true
		}
	}
	return flows, nil
}

// A Lodging is what there is to do for connections at addresses that do not go along.
type Lodging struct {
	Name  string // of the guests among them (package forward)
	Flows []forward.Flow
}

// enter has what comes for guests delivered to their sockets, and what comes for none of them
// passed on from here any more. Those that are guests are returned.
func (l *Lodging) enter() (guests map[forward.Flow]bool, err error) {
	if len(l.Flows) == 0 {
		return nil, nil
	}
	flows, err := abroad(l.Flows)
	if err == nil && len(flows) > 0 {
		err = forward.Admit(l.Name, flows)
	}
	return setOf(flows), errors.Join(err, withdraw(l.Flows))
}

// SweepGuests dismisses those whose sockets are gone, and returns the others.
func SweepGuests() (alive []forward.Flow, err error) {
	all, err := forward.Guests()
	if err != nil || len(all) == 0 {
		return nil, err
	}
	if alive, err = forward.Alive(flowsOf(all)); err != nil {
		return nil, err
	}
	return alive, retain(all, setOf(alive))
}

func flowsOf(all map[string][]forward.Flow) []forward.Flow {
	return slices.Concat(slices.Collect(maps.Values(all))...)
}

// retain dismisses guests that are not among these.
func retain(all map[string][]forward.Flow, these map[forward.Flow]bool) error {
	var errs []error
	for name, flows := range all {
		left := slices.DeleteFunc(slices.Clone(flows), func(f forward.Flow) bool { return !these[f] })
		switch len(left) {
		case len(flows):
		case 0:
			errs = append(errs, forward.Dismiss(name))
		default:
			errs = append(errs, forward.Admit(name, left))
		}
	}
	return errors.Join(errs...)
}

func setOf(flows []forward.Flow) map[forward.Flow]bool {
	all := make(map[forward.Flow]bool)
	for _, f := range flows {
		all[f] = true
	}
	return all
}

// abroad are those flows that are guests on this host.
func abroad(flows []forward.Flow) ([]forward.Flow, error) {
	if len(flows) == 0 {
		return nil, nil
	}
	own, err := ownAddresses()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(slices.Clone(flows), func(f forward.Flow) bool { return own.has(f.Local.Addr()) }), nil
}

// DismissGuests ends that what comes for flows is delivered here, as they have left: a peer on this
// host would be reset.
func DismissGuests(flows []forward.Flow) error {
	left, err := abroad(flows)
	if err != nil || len(left) == 0 {
		return err
	}
	all, err := forward.Guests()
	if err != nil {
		return err
	}
	stay, gone := make(map[forward.Flow]bool), setOf(left)
	for _, f := range flowsOf(all) {
		stay[f] = !gone[f]
	}
	return retain(all, stay)
}

// AdmitGuests undoes that, under a name.
func AdmitGuests(name string, flows []forward.Flow) error {
	back, err := abroad(flows)
	if err != nil || len(back) == 0 {
		return err
	}
	return forward.Admit(name, back)
}

// HostAddresses are those at which other hosts may reach this one, no service addresses among them.
// What is found to be the best comes first.
func HostAddresses(best netip.Addr) ([]netip.Addr, error) {
	own, err := ownAddresses()
	if err != nil {
		return nil, err
	}
	all := slices.DeleteFunc(slices.Collect(maps.Keys(own)), func(a netip.Addr) bool { return !a.IsGlobalUnicast() || !own[a] })
	slices.SortFunc(all, func(a, b netip.Addr) int {
		switch {
		case a == best:
			return -1
		case b == best:
			return 1
		}
		return a.Compare(b)
	})
	return all, nil
}

// hideTransparency takes the option that guests need, and do not know of, out of what was read.
func hideTransparency(s *tcprepair.Socket) {
	s.Options = slices.Clone(s.Options)
	for i := range s.Options {
		if o := &s.Options[i]; o.Level == unix.SOL_IP && o.Name == unix.IP_TRANSPARENT {
			o.Value = make([]byte, len(o.Value))
		}
	}
}
