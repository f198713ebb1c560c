package agent

import (
	"errors"
	"net/netip"
	"slices"
	"strings"

	"github.com/pagurus-project/pagurus/migrate/resource"
	"github.com/pagurus-project/pagurus/migrate/source"
	"github.com/pagurus-project/pagurus/tcprepair/forward"
)

// HostGuests are those of the host that the calling process is on.
func HostGuests() Guests { return hostGuests{} }

type hostGuests struct{}

// apart separates the name of a migration from what tells those of its connections that live
// elsewhere than the others.
const apart = "."

func (hostGuests) PassedOn() ([]PassedOn, error) {
	list, err := forward.List()
	if err != nil {
		return nil, err
	}
	var all []PassedOn
	for _, f := range list {
		p := PassedOn{To: addressesOf(f.To)}
		p.Migration, _, _ = strings.Cut(f.Name, apart)
		for _, flow := range f.Flows {
			p.Connections = append(p.Connections, Connection(flow))
		}
		all = append(all, p)
	}
	return all, nil
}

func addressesOf(n forward.Neighbor) []netip.Addr {
	return slices.DeleteFunc([]netip.Addr{n.IPv4, n.IPv6}, func(a netip.Addr) bool { return !a.IsValid() })
}

func (hostGuests) Here() ([]Connection, error) {
	if err := resource.SweepGuests(); err != nil { // those that have just left are not here
		return nil, err
	}
	guests, err := forward.Guests()
	if err != nil {
		return nil, err
	}
	var all []Connection
	for _, flows := range guests {
		for _, f := range flows {
			all = append(all, Connection(f))
		}
	}
	return all, nil
}

func (hostGuests) Addresses() ([]netip.Addr, error) { return resource.HostAddresses() }

func (hostGuests) PassOn(connections []Connection, to []netip.Addr) error {
	moved := make(map[forward.Flow]bool)
	for _, c := range connections {
		moved[forward.Flow(c)] = true
	}
	list, err := forward.List()
	if err != nil {
		return err
	}
	var errs []error
	for _, f := range list {
		these := slices.DeleteFunc(slices.Clone(f.Flows), func(f forward.Flow) bool { return !moved[f] })
		switch {
		case len(these) == 0:
		case len(to) == 0:
			errs = append(errs, forward.Drop(f.Name, these))
		default:
			errs = append(errs, redirect(f, these, to))
		}
	}
	return errors.Join(errs...)
}

// redirect leads some of what is passed on to another host.
func redirect(f forward.Forward, these []forward.Flow, to []netip.Addr) error {
	next, err := forward.Reach(to)
	if err != nil {
		return err
	}
	was := f.Name
	if len(these) < len(f.Flows) {
		migration, _, _ := strings.Cut(f.Name, apart)
		f.Name = migration + apart + strings.ReplaceAll(to[0].String(), ":", "-")
	}
	f.Flows, f.To = these, next
	if f.Devices, err = source.Devices(); err != nil {
		return err
	}
	if err := forward.Set(f); err != nil || f.Name == was {
		return err
	}
	return forward.Drop(was, these)
}
