package resource

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/tcprepair/inet"
	"github.com/pagurus-project/pagurus/tcprepair/udp"
)

// datagrams lists those of an image, and how many cannot be delivered as they came: to a socket
// that is bound to a device or a group, or that was connected to somebody else since.
func datagrams(m *image.Image) (all []udp.Datagram, lost int) {
	for i := range m.Files {
		s := m.Files[i].UDP
		if s == nil {
			continue
		}
		bound := slices.ContainsFunc(s.Options, bindsToDevice)
		local := s.Local.Addr().Unmap().WithZone("")
		for _, d := range s.Queue {
			elsewhere := !local.IsUnspecified() && local != d.To.Addr()
			stranger := s.Remote.IsValid() && netip.AddrPortFrom(s.Remote.Addr().Unmap(), s.Remote.Port()) != d.From
			if bound || elsewhere || stranger || local.IsMulticast() {
				lost++
			} else {
				all = append(all, d)
			}
		}
	}
	return all, lost
}

func bindsToDevice(o inet.Option) bool {
	return o.Level == unix.SOL_SOCKET && o.Name == unix.SO_BINDTODEVICE && len(o.Value) > 0
}

// deliverDatagrams gives them to the sockets of this host. Those that were sent to an address
// of the source alone, or to a group, go to the address by which this host would answer.
func deliverDatagrams(all []udp.Datagram) error {
	var ready []udp.Datagram
	var errs []error
	here := make(map[netip.Addr]bool)
	answers := make(map[netip.Addr]netip.Addr)
	for _, d := range all {
		to, from := d.To.Addr(), d.From.Addr()
		local, known := here[to]
		if !known {
			routes, err := netlink.RouteGet(to.AsSlice())
			local = err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL
			here[to] = local
		}
		if local {
			ready = append(ready, d)
			continue
		}
		by, known := answers[from]
		if !known {
			routes, err := netlink.RouteGet(from.AsSlice())
			if err != nil || len(routes) == 0 {
				errs = append(errs, fmt.Errorf("looking for the way to %v: %w", from, err))
				continue
			}
			by = endpointOf(routes[0].Src, 0).Addr()
			answers[from] = by
		}
		d.To = netip.AddrPortFrom(by, d.To.Port())
		ready = append(ready, d)
	}
	return errors.Join(append(errs, udp.Deliver(ready))...)
}
