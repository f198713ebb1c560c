package migrate

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"
)

// An Address is a service address: the local end of connections, which one host
// has at a time.
type Address struct {
	Prefix netip.Prefix `json:"address"` // with the length of its network's prefix
	Host   string       `json:"host"`    // that has it, or is to have it
	Since  time.Time    `json:"since"`
	// Leaving says that it is to be removed: the host has it until it has said
	// that it has not.
	Leaving bool `json:"leaving"`
}

// ErrAddressTaken says that an address cannot be added, since there is one.
var ErrAddressTaken = errors.New("there is such an address")

// ValidateAddress reports what keeps a prefix from being that of a service address.
func ValidateAddress(p netip.Prefix) error {
	a := p.Addr()
	switch {
	case !p.IsValid() || a.Is4In6():
		return errors.New("an address and the length of its network's prefix are needed, as in 10.0.0.100/24")
	case p.IsSingleIP():
		return fmt.Errorf("%s: the length of its network's prefix is needed, as in %s/24", p, a)
	case !a.IsGlobalUnicast():
		return fmt.Errorf("%s is not an address that connections from other hosts can have", a)
	case a.BitLen()-p.Bits() > 1 && p.Masked().Addr() == a:
		return fmt.Errorf("%s is the network itself", p)
	case a.Is4() && a.BitLen()-p.Bits() > 1 && !p.Contains(a.Next()):
		return fmt.Errorf("%s is the broadcast address of its network", p)
	}
	return nil
}

// An AddressEvent is one entry of the replicated log about a service address.
type AddressEvent interface {
	// apply returns the address after the event; without a host it is none.
	apply(before Address) (Address, error)
}

// AddressAdded gives a host an address.
type AddressAdded struct {
	Prefix netip.Prefix
	Host   string
	At     time.Time
}

// AddressLeaving says that the host is to have it no longer.
type AddressLeaving struct{ Address netip.Addr }

// AddressRemoved says that this host has it no longer. It changes nothing unless
// the address was leaving that host.
type AddressRemoved struct {
	Address netip.Addr
	Host    string
}

var (
	_ AddressEvent = AddressAdded{}
	_ AddressEvent = AddressLeaving{}
	_ AddressEvent = AddressRemoved{}
)

func (e AddressAdded) apply(before Address) (Address, error) {
	switch {
	case before.Host == "":
		return Address{Prefix: e.Prefix, Host: e.Host, Since: e.At}, nil
	case before.Leaving:
		return before, fmt.Errorf("%w: %s is still leaving %s", ErrAddressTaken, before.Prefix, before.Host)
	case before.Prefix != e.Prefix || before.Host != e.Host:
		return before, fmt.Errorf("%w: %s is on %s", ErrAddressTaken, before.Prefix, before.Host)
	}
	return before, nil
}

func (e AddressLeaving) apply(before Address) (Address, error) {
	before.Leaving = before.Host != ""
	return before, nil
}

func (e AddressRemoved) apply(before Address) (Address, error) {
	if before.Leaving && before.Host == e.Host {
		return Address{}, nil
	}
	return before, nil
}

// Addresses are all service addresses. What Apply does is deterministic, and an
// event that is repeated changes nothing. They are not safe for concurrent use.
type Addresses struct{ all map[netip.Addr]Address }

// NewAddresses makes a list of these.
func NewAddresses(all ...Address) *Addresses {
	l := &Addresses{all: map[netip.Addr]Address{}}
	for _, a := range all {
		l.all[a.Prefix.Addr()] = a
	}
	return l
}

// Apply applies an event and returns the address after it, or what there is of it
// with ErrAddressTaken. One that was removed, or never was, has no host.
func (l *Addresses) Apply(e AddressEvent) (Address, error) {
	var about netip.Addr
	switch e := e.(type) {
	case AddressAdded:
		about = e.Prefix.Addr()
	case AddressLeaving:
		about = e.Address
	case AddressRemoved:
		about = e.Address
	}
	after, err := e.apply(l.all[about])
	if err != nil {
		return after, err
	}
	if after.Host == "" {
		delete(l.all, about)
	} else {
		l.all[about] = after
	}
	return after, nil
}

// List returns all of them in order.
func (l *Addresses) List() []Address {
	return slices.SortedFunc(maps.Values(l.all), func(a, b Address) int { return a.Prefix.Addr().Compare(b.Prefix.Addr()) })
}
