package forward

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A Neighbor is another host on a link of this one.
type Neighbor struct {
	Device     string     // which leads there
	IPv4, IPv6 netip.Addr // of its own, at that device. One that is not valid: it gets no packets of that version
}

// ErrNotNeighbor says that a host is on no link of this one: there is a router between
// them, or no way, or it is this one.
var ErrNotNeighbor = errors.New("not a neighbour")

// Reach tells how to get to a host with these addresses. Of each version of IP the first
// one counts that the host can be reached at without a router, of IPv6 by the same device
// as that of IPv4.
func Reach(addrs []netip.Addr) (Neighbor, error) {
	var n Neighbor
	for _, ipv6 := range []bool{false, true} {
		for _, a := range addrs {
			if a = a.Unmap(); a.Is6() != ipv6 || !a.IsValid() {
				continue
			}
			device, err := leads(a)
			if err != nil {
				return Neighbor{}, err
			}
			if device == "" || n.Device != "" && device != n.Device {
				continue
			}
			n.Device = device
			if ipv6 {
				n.IPv6 = a.WithZone("")
			} else {
				n.IPv4 = a
			}
			break
		}
	}
	if n.Device == "" {
		return Neighbor{}, fmt.Errorf("a host with the addresses %v: %w", addrs, ErrNotNeighbor)
	}
	return n, nil
}

// leads is the device that leads to a neighbour with this address, if there is one.
func leads(a netip.Addr) (string, error) {
	routes, err := netlink.RouteGetWithOptions(a.AsSlice(), &netlink.RouteGetOptions{Oif: a.Zone()})
	switch {
	case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.EACCES), errors.Is(err, unix.EINVAL):
		return "", nil // nowhere, or it is told so by a route (unreachable, prohibit, blackhole)
	case errors.As(err, &netlink.LinkNotFoundError{}):
		return "", nil
	case err != nil:
		return "", fmt.Errorf("looking for the way to %v: %w", a, err)
	}
	if len(routes) == 0 || routes[0].Type != unix.RTN_UNICAST || routes[0].Gw != nil || routes[0].Via != nil {
		return "", nil
	}
	link, err := netlink.LinkByIndex(routes[0].LinkIndex)
	if err != nil {
		return "", fmt.Errorf("looking for the way to %v: %w", a, err)
	}
	const alone = unix.IFF_NOARP | unix.IFF_POINTOPOINT | unix.IFF_LOOPBACK // has no neighbours to tell apart
	if link.Attrs().RawFlags&alone != 0 {
		return "", nil
	}
	return link.Attrs().Name, nil
}

func (n *Neighbor) link() (netlink.Link, error) {
	link, err := netlink.LinkByName(n.Device)
	if err != nil {
		return nil, fmt.Errorf("looking for the device %q that leads to the neighbour: %w", n.Device, err)
	}
	return link, nil
}

// address is the neighbour's in a version of IP.
func (n *Neighbor) address(f *family) netip.Addr {
	if f.domain == unix.AF_INET6 {
		return n.IPv6.WithZone("")
	}
	return n.IPv4.Unmap()
}
