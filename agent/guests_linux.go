package agent

import (
	"net/netip"
	"slices"

	"github.com/pagurus-project/pagurus/migrate/resource"
	"github.com/pagurus-project/pagurus/tcprepair/forward"
)

// HostGuests are those of the host that the calling process is on.
func HostGuests() Guests { return hostGuests{} }

type hostGuests struct{}

func (hostGuests) PassedOn() ([]PassedOn, error) {
	list, err := forward.List()
	if err != nil {
		return nil, err
	}
	var all []PassedOn
	for _, f := range list {
		p := PassedOn{To: addressesOf(f.To)}
		p.Migration = resource.MigrationOf(f)
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
	flows, err := resource.SweepGuests() // those that have just left are not here
	if err != nil {
		return nil, err
	}
	var all []Connection
	for _, f := range flows {
		all = append(all, Connection(f))
	}
	return all, nil
}

func (hostGuests) Addresses(best netip.Addr) ([]netip.Addr, error) {
	return resource.HostAddresses(best)
}

func (hostGuests) PassOn(connections []Connection, to []netip.Addr) error {
	var flows []forward.Flow
	for _, c := range connections {
		flows = append(flows, forward.Flow(c))
	}
	return resource.PassOn(flows, to)
}
