package address

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// tablePrefix is what the firewall's tables of silent addresses begin with.
const tablePrefix = "pagurus-silent-"

// Silence keeps the host from answering who asks for any of the addresses, and
// from asking in their name, until Speak with the same name. Packets to and from
// them pass. The name is of letters, digits, - and _. To be silent twice under one
// name is an error.
func Silence(name string, addresses []netip.Addr) error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	arp := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyARP, Name: tablePrefix + name})
	inet := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv6, Name: tablePrefix + name})
	chain := func(table *nftables.Table, name string, hook *nftables.ChainHook) *nftables.Chain {
		return conn.AddChain(&nftables.Chain{
			Table: table, Name: name, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: nftables.ChainPriorityFilter,
		})
	}
	arpIn, arpOut := chain(arp, "in", arpHook(0)), chain(arp, "out", arpHook(1))
	in, out := chain(inet, "in", nftables.ChainHookInput), chain(inet, "out", nftables.ChainHookOutput)
	for _, a := range addresses {
		if a.Is4() {
			conn.AddRule(&nftables.Rule{Table: arp, Chain: arpIn, Exprs: arpAbout(a, arpTarget)})
			conn.AddRule(&nftables.Rule{Table: arp, Chain: arpOut, Exprs: arpAbout(a, arpSender)})
			continue
		}
		conn.AddRule(&nftables.Rule{Table: inet, Chain: in, Exprs: neighbourAbout(a, neighbourSolicitation)})
		conn.AddRule(&nftables.Rule{Table: inet, Chain: out, Exprs: neighbourAbout(a, neighbourAdvertisement)})
		conn.AddRule(&nftables.Rule{Table: inet, Chain: out, Exprs: neighbourFrom(a)})
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("keeping silent about %v: %w", addresses, err)
	}
	return nil
}

// Speak ends a silence. To end one that is not there is no error.
func Speak(name string) error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	for _, family := range []nftables.TableFamily{nftables.TableFamilyARP, nftables.TableFamilyIPv6} {
		tables, err := conn.ListTablesOfFamily(family)
		if err != nil {
			return fmt.Errorf("listing firewall tables: %w", err)
		}
		for _, t := range tables {
			if t.Name != tablePrefix+name {
				continue
			}
			conn.DelTable(t)
			if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("removing firewall table %s: %w", t.Name, err)
			}
		}
	}
	return nil
}

// arpHook is one of NF_ARP_IN and NF_ARP_OUT (include/uapi/linux/netfilter_arp.h).
func arpHook(n uint32) *nftables.ChainHook { return new(nftables.ChainHook(n)) }

// Where the protocol addresses are in an ARP packet between Ethernet cards.
const (
	arpSender = 14
	arpTarget = 24
)

// arpAbout drops ARP packets that have the address at an offset.
func arpAbout(a netip.Addr, offset uint32) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: a.AsSlice()},
		&expr.Verdict{Kind: expr.VerdictDrop},
	}
}

// Messages of neighbour discovery (RFC 4861, sections 4.3 and 4.4); both have the
// address that they are about behind eight bytes.
const (
	neighbourSolicitation  = 135
	neighbourAdvertisement = 136
)

// neighbourAbout drops messages of neighbour discovery about the address.
func neighbourAbout(a netip.Addr, kind byte) []expr.Any {
	return dropNeighbour(kind,
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 8, Len: 16},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: a.AsSlice()},
	)
}

// neighbourFrom drops questions that the address asks: the answer goes to who
// asked, and who is asked notes where that is.
func neighbourFrom(a netip.Addr) []expr.Any {
	const source = 8 // in the IPv6 header
	return dropNeighbour(neighbourSolicitation,
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: source, Len: 16},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: a.AsSlice()},
	)
}

func dropNeighbour(kind byte, which ...expr.Any) []expr.Any {
	of := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_ICMPV6}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{kind}},
	}
	return append(append(of, which...), &expr.Verdict{Kind: expr.VerdictDrop})
}
