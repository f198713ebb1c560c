package forward

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// A family is a version of IP, and where it has addresses.
type family struct {
	domain       uint8
	network      uint16
	addresses    uint32 // where the source address begins in the header; the destination's follows
	addressBytes uint32
	datatype     nftables.SetDatatype
}

var families = []family{
	{domain: unix.AF_INET, network: unix.ETH_P_IP, addresses: 12, addressBytes: 4, datatype: nftables.TypeIPAddr},
	{domain: unix.AF_INET6, network: unix.ETH_P_IPV6, addresses: 8, addressBytes: 16, datatype: nftables.TypeIP6Addr},
}

func (f *family) has(a netip.Addr) bool { return uint32(a.BitLen()) == 8*f.addressBytes }

// set is the name of the set with the family's flows.
func (f *family) set() string { return fmt.Sprint("flows", 8*f.addressBytes) }

func (f *family) types() []nftables.SetDatatype {
	return []nftables.SetDatatype{f.datatype, nftables.TypeInetService, f.datatype, nftables.TypeInetService}
}

func (f *family) keyType() nftables.SetDatatype { return nftables.MustConcatSetType(f.types()...) }

// match begins a rule for what the peers of the set's flows send.
func (f *family) match() []any {
	source, destination := uint32(unix.NFT_REG32_00), unix.NFT_REG32_00+f.addressBytes/4+1
	address := func(register, offset uint32) *expr.Payload {
		return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: f.addressBytes}
	}
	port := func(register, offset uint32) *expr.Payload {
		return &expr.Payload{DestRegister: register + f.addressBytes/4, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2}
	}
	return []any{
		&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, f.network)},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
		address(source, f.addresses), port(source, 0),
		address(destination, f.addresses+f.addressBytes), port(destination, 2),
		&expr.Lookup{SourceRegister: source, SetName: f.set()},
	}
}

// fill makes the sets have these flows and no others.
func (b *batch) fill(flows []Flow) {
	for i := range families {
		f := &families[i]
		b.addSet(f)
		b.flushSet(f)
		b.addElements(f, f.keys(flows))
	}
}

// flows are those in a table's sets; ok is whether the table is there.
func flows(conn *nftables.Conn, t *nftables.Table) (all []Flow, ok bool, err error) {
	for i := range families {
		some, err := families[i].read(conn, t)
		if err != nil {
			// The library does not wrap what the kernel says.
			if there, err := exists(conn, t); err == nil && !there {
				return nil, false, nil
			}
			return nil, false, fmt.Errorf("listing the firewall's sets: %w", err)
		}
		all = append(all, some...)
	}
	return all, true, nil
}

// read lists a set. The kernel makes its table larger or smaller some time after it has
// changed, and a list made meanwhile has some elements twice or not at all
// (nft_rhash_walk): so it has to be the same twice.
func (f *family) read(conn *nftables.Conn, t *nftables.Table) ([]Flow, error) {
	var last map[Flow]bool
	for range mostReads {
		elements, err := conn.GetSetElements(&nftables.Set{Table: t, Name: f.set()})
		if err != nil {
			return nil, err
		}
		found, twice := make(map[Flow]bool), false
		for _, e := range elements {
			if flow, ok := f.flow(e.Key); ok {
				twice = twice || found[flow]
				found[flow] = true
			}
		}
		if last != nil && !twice && maps.Equal(found, last) {
			return slices.Collect(maps.Keys(found)), nil
		}
		last = found
	}
	return nil, errors.New("it changes all the time")
}

// mostReads bounds that.
const mostReads = 100

func exists(conn *nftables.Conn, t *nftables.Table) (bool, error) {
	names, err := named(conn, t.Family, t.Name)
	return slices.Contains(names, ""), err
}

// remove takes a table away, if it is there.
func remove(t *nftables.Table) error {
	b := batch{table: t}
	b.deleteTable()
	if err := b.commit(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("removing the firewall's rules: %w", err)
	}
	return nil
}

// named are the names of the tables that begin so.
func named(conn *nftables.Conn, family nftables.TableFamily, prefix string) ([]string, error) {
	tables, err := conn.ListTablesOfFamily(family)
	if err != nil {
		return nil, fmt.Errorf("listing firewall tables: %w", err)
	}
	var names []string
	for _, t := range tables {
		if name, ok := strings.CutPrefix(t.Name, prefix); ok {
			names = append(names, name)
		}
	}
	return names, nil
}
