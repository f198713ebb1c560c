package resource

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/pagurus-project/pagurus/tcprepair/forward"
	"github.com/pagurus-project/pagurus/tcprepair/hold"
)

// passing is held by who changes what this host passes on by what it has seen of that.
var passing sync.Mutex

// Devices are those of this host through which packets come in.
func Devices() ([]string, error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("listing network devices: %w", err)
	}
	var names []string
	for _, d := range all {
		if !hold.IsOwn(d.Name) {
			names = append(names, d.Name)
		}
	}
	return names, nil
}

// ReachFor is the way to a neighbour with these addresses, the better ones first, for flows of
// one or both versions of IP.
func ReachFor(flows []forward.Flow, there []netip.Addr) (forward.Neighbor, error) {
	uses := func(ipv6 bool) bool {
		return slices.ContainsFunc(flows, func(f forward.Flow) bool { return f.Local.Addr().Is6() == ipv6 })
	}
	there = slices.DeleteFunc(slices.Clone(there), func(a netip.Addr) bool { return !uses(a.Is6()) })
	n, err := forward.Reach(there)
	if err == nil && (uses(false) && !n.IPv4.IsValid() || uses(true) && !n.IPv6.IsValid()) {
		err = fmt.Errorf("%w at both an IPv4 and an IPv6 address through one device: %v", forward.ErrNotNeighbor, there)
	}
	return n, err
}

// withdraw ends that this host passes flows on.
func withdraw(flows []forward.Flow) error {
	passing.Lock()
	defer passing.Unlock()
	all, err := forward.List()
	if err != nil {
		return err
	}
	var errs []error
	for _, f := range all {
		errs = append(errs, forward.Drop(f.Name, flows))
	}
	return errors.Join(errs...)
}

// PassOn leads those of these flows that are passed on to the neighbour with these addresses;
// with none it ends that.
func PassOn(flows []forward.Flow, to []netip.Addr) error {
	passing.Lock()
	defer passing.Unlock()
	moved := setOf(flows)
	all, err := forward.List()
	if err != nil {
		return err
	}
	var errs []error
	for i := range all {
		f := &all[i]
		these := slices.DeleteFunc(slices.Clone(f.Flows), func(f forward.Flow) bool { return !moved[f] })
		switch {
		case len(these) == 0:
		case len(to) == 0:
			errs = append(errs, forward.Drop(f.Name, these))
		default:
			errs = append(errs, redirect(all, f, these, to))
		}
	}
	return errors.Join(errs...)
}

// redirect leads some of what is passed on to another host. In between nothing is not passed on.
func redirect(all []forward.Forward, f *forward.Forward, these []forward.Flow, to []netip.Addr) error {
	next := forward.Forward{Name: f.Name, Flows: these}
	var err error
	if next.To, err = ReachFor(these, to); err != nil {
		return err
	}
	if next.Devices, err = Devices(); err != nil {
		return err
	}
	if len(these) == len(f.Flows) {
		return forward.Set(next)
	}
	taken := func(f forward.Forward) bool { return f.Name == next.Name }
	for n := 1; slices.ContainsFunc(all, taken); n++ {
		next.Name = fmt.Sprint(MigrationOf(*f), apart, n)
	}
	if err := forward.Set(next); err != nil {
		return err
	}
	return forward.Drop(f.Name, these)
}

// apart separates the name of a migration from what tells some of its connections from the others.
const apart = "."

// MigrationOf names the one with which connections left that are passed on.
func MigrationOf(f forward.Forward) string {
	migration, _, _ := strings.Cut(f.Name, apart)
	return migration
}
