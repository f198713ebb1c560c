package replog

import (
	"context"
	"fmt"
	"net/netip"

	"google.golang.org/protobuf/proto"

	"github.com/pagurus-project/pagurus/migrate"
	raftlogv1 "github.com/pagurus-project/pagurus/proto/raftlog/v1"
)

// encodeAddress makes the log's command out of an event of a service address.
func encodeAddress(event migrate.AddressEvent) ([]byte, error) {
	entry := &raftlogv1.Entry{}
	switch e := event.(type) {
	case migrate.AddressAdded:
		entry.At = timestamp(e.At)
		entry.Event = &raftlogv1.Entry_AddressAdded{AddressAdded: &raftlogv1.AddressAdded{Prefix: e.Prefix.String(), Host: e.Host}}
	case migrate.AddressLeaving:
		entry.Event = &raftlogv1.Entry_AddressLeaving{AddressLeaving: &raftlogv1.AddressLeaving{Address: e.Address.String()}}
	case migrate.AddressRemoved:
		entry.Event = &raftlogv1.Entry_AddressRemoved{AddressRemoved: &raftlogv1.AddressRemoved{Address: e.Address.String(), Host: e.Host}}
	default:
		return nil, fmt.Errorf("encoding %T: no such entry", event)
	}
	data, err := proto.Marshal(entry)
	if err != nil {
		return nil, fmt.Errorf("encoding %T: %w", event, err)
	}
	return data, nil
}

// decodeAddress is the reverse of encodeAddress, for an entry that is about an
// address.
func decodeAddress(entry *raftlogv1.Entry) (event migrate.AddressEvent, ok bool, err error) {
	var address netip.Addr
	switch e := entry.GetEvent().(type) {
	case *raftlogv1.Entry_AddressAdded:
		added := migrate.AddressAdded{Host: e.AddressAdded.GetHost(), At: timeOf(entry.GetAt())}
		if added.Prefix, err = netip.ParsePrefix(e.AddressAdded.GetPrefix()); err == nil && added.Host == "" {
			err = fmt.Errorf("address %s without a host", added.Prefix)
		}
		event = added
	case *raftlogv1.Entry_AddressLeaving:
		address, err = netip.ParseAddr(e.AddressLeaving.GetAddress())
		event = migrate.AddressLeaving{Address: address}
	case *raftlogv1.Entry_AddressRemoved:
		address, err = netip.ParseAddr(e.AddressRemoved.GetAddress())
		event = migrate.AddressRemoved{Address: address, Host: e.AddressRemoved.GetHost()}
	default:
		return nil, false, nil
	}
	if err != nil {
		return nil, true, fmt.Errorf("%w: %w", errUnreadable, err)
	}
	return event, true, nil
}

func prefixesToProto(list []netip.Prefix) []string {
	var out []string
	for _, p := range list {
		out = append(out, p.String())
	}
	return out
}

func prefixesFromProto(list []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, text := range list {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errUnreadable, err)
		}
		out = append(out, p)
	}
	return out, nil
}

func addressToProto(a migrate.Address) *raftlogv1.Address {
	return &raftlogv1.Address{Prefix: a.Prefix.String(), Host: a.Host, Since: timestamp(a.Since), Leaving: a.Leaving}
}

func addressFromProto(m *raftlogv1.Address) (migrate.Address, error) {
	a := migrate.Address{Host: m.GetHost(), Since: timeOf(m.GetSince()), Leaving: m.GetLeaving()}
	var err error
	if a.Prefix, err = netip.ParsePrefix(m.GetPrefix()); err != nil || a.Host == "" {
		return a, fmt.Errorf("%w: address %q on host %q", errUnreadable, m.GetPrefix(), a.Host)
	}
	return a, nil
}

// ApplyAddress writes an event of a service address and returns the address after
// it; without a host there is none. Its errors are those of Apply,
// [migrate.ErrAddressTaken] and [migrate.ErrAddressHeld].
func (l *Log) ApplyAddress(ctx context.Context, event migrate.AddressEvent) (migrate.Address, error) {
	data, err := encodeAddress(event)
	if err != nil {
		return migrate.Address{}, err
	}
	a, err := l.write(ctx, data)
	return a.address, err
}

// Addresses returns the service addresses as this server has applied them, in
// order, and the number of the last entry that they take account of.
func (l *Log) Addresses() (all []migrate.Address, index uint64) { return l.fsm.addresses() }
