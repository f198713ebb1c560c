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

// Errors of an event of an address that changes nothing.
var (
	// ErrAddressTaken says that an address cannot be added, since there is one.
	ErrAddressTaken = errors.New("there is such an address")
	// ErrAddressHeld says that an address cannot be removed, since it moves.
	ErrAddressHeld = errors.New("the address is in a migration")
)

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

// ApplyAddress applies an event of an address and returns the address after it, or
// what there is of it with ErrAddressTaken or ErrAddressHeld. One that was removed,
// or never was, has no host.
func (l *Ledger) ApplyAddress(e AddressEvent) (Address, error) {
	var about netip.Addr
	switch e := e.(type) {
	case AddressAdded:
		about = e.Prefix.Addr()
	case AddressLeaving:
		about = e.Address
		if held, ok := l.addressHolder(about); ok {
			return l.addresses[about], fmt.Errorf("%w: %s goes along with process %d in migration %s", ErrAddressHeld, about, held.PID, held.ID)
		}
	case AddressRemoved:
		about = e.Address
	}
	after, err := e.apply(l.addresses[about])
	if err != nil {
		return after, err
	}
	if after.Host == "" {
		delete(l.addresses, about)
	} else {
		l.addresses[about] = after
	}
	return after, nil
}

// RestoreAddress puts an address of a snapshot back.
func (l *Ledger) RestoreAddress(a Address) { l.addresses[a.Prefix.Addr()] = a }

// Addresses returns all service addresses in order.
func (l *Ledger) Addresses() []Address {
	return slices.SortedFunc(maps.Values(l.addresses), func(a, b Address) int { return a.Prefix.Addr().Compare(b.Prefix.Addr()) })
}

// addressHolder returns the migration that an address is part of.
func (l *Ledger) addressHolder(a netip.Addr) (Record, bool) {
	for _, id := range l.ids {
		if r := l.records[id]; r.HoldsAddress(a) {
			return r, true
		}
	}
	return Record{}, false
}

// unfit says which addresses cannot go along with a process: preflight has taken
// them from a list that may have changed since.
func (l *Ledger) unfit(r Record, addresses []netip.Prefix) (blockers []Finding) {
	for _, p := range addresses {
		now, held := l.addresses[p.Addr()], Record{}
		if h, ok := l.addressHolder(p.Addr()); ok {
			held = h
		}
		switch {
		case held.ID != "":
			blockers = append(blockers, Findingf(CodeAddressInUse, "wait for it or cancel it: migratectl watch "+held.ID,
				"%s goes along with process %d in migration %s", p.Addr(), held.PID, held.ID))
		case now.Prefix != p || now.Host != r.From || now.Leaving:
			blockers = append(blockers, Findingf(CodeAddressMissing, "see migratectl address ls, and try again",
				"%s is not a service address of %s any more", p.Addr(), r.From))
		}
	}
	return blockers
}

// carry gives the addresses that go along with a process to the host on which the
// log has come to say that it runs.
func (l *Ledger) carry(before, after Record, e Event) {
	was, is := before.Decision(), after.Decision()
	var host string
	switch {
	case was == DecisionNone && is == DecisionCommit:
		host = after.To
	case was == DecisionCommit && is == DecisionAbort:
		host = after.From
	default:
		return
	}
	var at time.Time
	switch e := e.(type) {
	case Decided:
		at = e.At
	case NeverRan:
		at = e.At
	case Fenced:
		at = e.At
	}
	for _, p := range after.Addresses {
		l.addresses[p.Addr()] = Address{Prefix: p, Host: host, Since: at}
	}
}
