package resource

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/migrate/procfs"
	"github.com/pagurus-project/pagurus/tcprepair"
	"github.com/pagurus-project/pagurus/tcprepair/inet"
	"github.com/pagurus-project/pagurus/tcprepair/raw"
)

// AddressesAlong returns which of the host's service addresses go along with the
// tree: those that a socket of it is bound to, and those that were asked for. What
// is asked for and not there is a blocker; who listens on all addresses is warned
// of those that stay.
func (d *TreeDump) AddressesAlong(m *image.Image, service []netip.Prefix, asked []netip.Addr) (along []netip.Prefix) {
	for _, a := range asked {
		if !IsAmong(service, a) {
			d.Block(migrate.CodeAddressMissing, "see migratectl address ls", "%v is not a service address of the host that the process is on", a)
		}
	}
	for _, p := range service {
		bound := slices.ContainsFunc(m.Files, func(f image.File) bool { return localOf(&f).Addr().Unmap() == p.Addr() })
		if bound || slices.Contains(asked, p.Addr()) {
			along = append(along, p)
			continue
		}
		for i := range m.Files {
			if takes(&m.Files[i], p.Addr()) {
				d.Warn(migrate.CodeAddressStays, fmt.Sprintf("if it is for this process: --with-address %v", p.Addr()),
					"the process has a socket at port %d of all addresses; service address %v does not go along", localOf(&m.Files[i]).Port(), p.Addr())
			}
		}
	}
	return along
}

// IsAmong reports an address, also in IPv6 notation, that is one of these service addresses.
func IsAmong(service []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(service, func(p netip.Prefix) bool { return p.Addr() == a.Unmap() })
}

// takes reports a socket for all addresses that takes what comes to this one.
func takes(f *image.File, a netip.Addr) bool {
	local := localOf(f).Addr().Unmap()
	if !local.IsValid() || !local.IsUnspecified() {
		return false
	}
	var options []inet.Option
	switch {
	case f.UDP != nil && !f.UDP.Remote.IsValid():
		options = f.UDP.Options
	case f.TCP != nil && f.TCP.State == tcprepair.Listen:
		options = f.TCP.Options
	default:
		return false
	}
	return local.Is6() == a.Is6() || local.Is6() && !inet.OnlyIPv6(options)
}

// CheckAddressesAlong looks for sockets of other processes that are bound to, or
// connected from, addresses that go along with the tree: they would lose them.
func (d *TreeDump) CheckAddressesAlong(along []netip.Prefix, pids []int) error {
	if len(along) == 0 {
		return nil
	}
	// The tree runs: what it opens or closes between one list and the other looks like
	// somebody else's, once.
	const looks = 3
	foreign, err := foreignSockets(along, pids)
	for look := 1; look < looks && len(foreign) > 0 && err == nil; look++ {
		var still map[uint32]string
		still, err = foreignSockets(along, pids)
		maps.DeleteFunc(foreign, func(inode uint32, _ string) bool { return still[inode] == "" })
	}
	for inode, what := range foreign {
		d.Block(migrate.CodeAddressInUse, "end what has it, or give it an address of its own", "%s", fmt.Sprintf(what, ownerOf(inode)))
	}
	return err
}

// foreignSockets are those at addresses that go along which processes do not have, by
// their inodes: what there is to say of each, with a place for who has it.
func foreignSockets(along []netip.Prefix, pids []int) (map[uint32]string, error) {
	own, err := socketsOf(pids)
	if err != nil {
		return nil, err
	}
	foreign := make(map[uint32]string)
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		for protocol, list := range map[string]func(uint8) ([]*netlink.Socket, error){"TCP": netlink.SocketDiagTCP, "UDP": netlink.SocketDiagUDP} {
			sockets, err := list(family)
			if err != nil {
				return nil, fmt.Errorf("listing %s sockets: %w", protocol, err)
			}
			for _, s := range sockets {
				// Without an inode it belongs to nobody any more, or yet.
				at := endpointOf(s.ID.Source, s.ID.SourcePort)
				if s.INode == 0 || own[s.INode] || !IsAmong(along, at.Addr()) {
					continue
				}
				foreign[s.INode] = fmt.Sprintf("service address %v would go along, and %%s has a %s socket at %v", at.Addr(), protocol, at)
			}
		}
	}
	listed, err := raw.List()
	if err != nil {
		return nil, fmt.Errorf("listing raw sockets: %w", err)
	}
	for _, l := range listed {
		if inode := uint32(l.Inode); inode != 0 && !own[inode] && IsAmong(along, l.Local) {
			foreign[inode] = fmt.Sprintf("service address %v would go along, and %%s has a raw or ping socket at it", l.Local)
		}
	}
	if len(foreign) == 0 {
		return nil, nil
	}
	if own, err = socketsOf(pids); err != nil { // opened meanwhile
		return nil, err
	}
	maps.DeleteFunc(foreign, func(inode uint32, _ string) bool { return own[inode] })
	return foreign, nil
}

// socketsOf are the inodes of the sockets that processes have.
func socketsOf(pids []int) (map[uint32]bool, error) {
	all := make(map[uint32]bool)
	for _, pid := range pids {
		proc := procfs.Process{PID: pid}
		fds, err := proc.FDs()
		if err != nil {
			return nil, err
		}
		for _, fd := range fds {
			link, err := proc.Link(fmt.Sprintf("fd/%d", fd))
			if errors.Is(err, os.ErrNotExist) {
				continue // closed since
			}
			if err != nil {
				return nil, err
			}
			var inode uint32
			if n, _ := fmt.Sscanf(link, "socket:[%d]", &inode); n == 1 {
				all[inode] = true
			}
		}
	}
	return all, nil
}

// ownerOf names a process that has a socket, if one of this PID namespace has it.
func ownerOf(inode uint32) string {
	want := fmt.Sprintf("socket:[%d]", inode)
	pids, _ := procfs.All()
	for _, pid := range pids {
		proc := procfs.Process{PID: pid}
		fds, _ := proc.FDs() // of who has exited meanwhile there are none
		for _, fd := range fds {
			if link, err := proc.Link(fmt.Sprintf("fd/%d", fd)); err == nil && link == want {
				name, _ := proc.Read("comm")
				return fmt.Sprintf("process %d (%s)", pid, strings.TrimSpace(string(name)))
			}
		}
	}
	return "somebody"
}
