package forward

import (
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// How packets to guests find the way, as ip-rule(8) and ip-route(8) show it:
//
//	100: from all fwmark 0x8000000/0x8000000 lookup 28775
//	local default dev lo table 28775
//
// Chosen so that they are nobody else's.
const (
	// MarkBit is the one of a packet's mark (SO_MARK, nft "meta mark") that says that it is
	// for a guest. All others are left as they are. Kubernetes has bits 14 and 15,
	// Tailscale 16 to 23, Cilium 0 to 15 and identities above.
	MarkBit = 1 << 27
	// RoutingTable has a route for whatever is marked.
	RoutingTable = 0x7067
	// RulePriority is that of the rule that leads there. It comes after the host's own
	// addresses (priority 0), and before all other ways (32766).
	RulePriority = 100
)

func (f *family) rule() *netlink.Rule {
	mask := uint32(MarkBit)
	r := netlink.NewRule()
	r.Family, r.Priority, r.Table = int(f.domain), RulePriority, RoutingTable
	r.Mark, r.Mask = MarkBit, &mask
	return r
}

// route leads all packets of a version of IP to this host itself.
func (f *family) route() (*netlink.Route, error) {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return nil, err
	}
	return &netlink.Route{
		LinkIndex: lo.Attrs().Index, Table: RoutingTable, Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST,
		Dst: &net.IPNet{IP: make(net.IP, f.addressBytes), Mask: make(net.IPMask, f.addressBytes)},
	}, nil
}

// addRouting makes the rule and the route of a version of IP, unless they are there.
func (f *family) addRouting() error {
	route, err := f.route()
	if err == nil {
		err = netlink.RouteReplace(route)
	}
	if err != nil {
		return fmt.Errorf("adding the route to this host's guests: %w", err)
	}
	if err := netlink.RuleAdd(f.rule()); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("adding the rule for this host's guests: %w", err)
	}
	return nil
}

// removeRouting takes them away, those that are there.
func removeRouting() error {
	var errs []error
	for i := range families {
		f := &families[i]
		route, err := f.route()
		if err != nil {
			return fmt.Errorf("removing the route to this host's guests: %w", err)
		}
		for _, err := range []error{netlink.RuleDel(f.rule()), netlink.RouteDel(route)} {
			if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.EAFNOSUPPORT) && !errors.Is(err, unix.EOPNOTSUPP) {
				errs = append(errs, err)
			}
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("removing the way to this host's guests: %w", err)
	}
	return nil
}
