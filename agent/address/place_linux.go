package address

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// What keeps a host from having an address.
var (
	ErrNoNetwork = errors.New("no device of this host is in its network")
	ErrPresent   = errors.New("the host has it for itself")
)

// Check reports what keeps the host from having an address whose network has this
// prefix: ErrNoNetwork or ErrPresent. It does not know who put on what is there.
func Check(p netip.Prefix) error {
	if _, err := deviceOf(p); err != nil {
		return fmt.Errorf("address %s: %w", p, err)
	}
	all, err := netlink.AddrList(nil, family(p.Addr()))
	if err != nil {
		return fmt.Errorf("listing addresses: %w", err)
	}
	for i := range all {
		if addrOf(all[i].IP) == p.Addr() {
			return fmt.Errorf("address %s: %w", p, ErrPresent)
		}
	}
	return nil
}

// Put gives the host an address, whose network has this prefix: shorter than all of
// the address. One that is there already is not put on, which is no error; a host
// that is not in the network has ErrNoNetwork.
func Put(p netip.Prefix) (put bool, err error) {
	device, err := deviceOf(p)
	if err != nil {
		return false, fmt.Errorf("address %s: %w", p, err)
	}
	address := &netlink.Addr{IPNet: hostNet(p.Addr())}
	if p.Addr().Is6() {
		// A host that begins to use an address asks first whether anybody has it,
		// for a second in which it cannot be used: who has it is known here.
		address.Flags = unix.IFA_F_NODAD
		// Deprecated, it is nobody's source by default (RFC 6724, rule 3).
		address.ValidLft, address.PreferedLft = math.MaxUint32, 0
	}
	err = netlink.AddrAdd(device, address)
	switch {
	case errors.Is(err, unix.EEXIST):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("putting %s on %s: %w", p, device.Attrs().Name, err)
	}
	return true, awaitLocal(p.Addr())
}

// localTimeout bounds how long the kernel takes to make an address usable.
const localTimeout = time.Second

// awaitLocal returns when packets to the address are this host's: with IPv6 that
// comes a moment after the address (addrconf_dad_work, net/ipv6/addrconf.c).
func awaitLocal(a netip.Addr) error {
	for deadline := time.Now().Add(localTimeout); ; {
		routes, err := netlink.RouteGet(a.AsSlice())
		if err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s is not in use after %v: %w", a, localTimeout, err)
		}
		<-time.After(100 * time.Microsecond)
	}
}

// Remove takes an address away, from whatever device has it. To remove one that
// is not there is no error.
func Remove(a netip.Addr) error {
	all, err := netlink.AddrList(nil, family(a))
	if err != nil {
		return fmt.Errorf("listing addresses: %w", err)
	}
	for i := range all {
		if ones, bits := all[i].Mask.Size(); addrOf(all[i].IP) != a || ones != bits {
			continue // somebody else's
		}
		device, err := netlink.LinkByIndex(all[i].LinkIndex)
		if err == nil {
			err = netlink.AddrDel(device, &netlink.Addr{IPNet: hostNet(a)})
		}
		if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("taking %s off: %w", a, err)
		}
	}
	return nil
}

// deviceOf finds the device that has an address in the network of p.
func deviceOf(p netip.Prefix) (netlink.Link, error) {
	all, err := netlink.AddrList(nil, family(p.Addr()))
	if err != nil {
		return nil, fmt.Errorf("listing addresses: %w", err)
	}
	for i := range all {
		if ones, _ := all[i].Mask.Size(); ones == p.Bits() && p.Masked().Contains(addrOf(all[i].IP)) {
			return netlink.LinkByIndex(all[i].LinkIndex)
		}
	}
	return nil, fmt.Errorf("%w %s", ErrNoNetwork, p.Masked())
}

func family(a netip.Addr) int {
	if a.Is4() {
		return netlink.FAMILY_V4
	}
	return netlink.FAMILY_V6
}

func addrOf(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

// hostNet is the address with the prefix that has nobody else in it.
func hostNet(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}
