package hold

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/tcprepair"
)

// The firewall's tables have the hold's name behind these, one at the devices
// for what comes in, one for what goes out.
const (
	inTable  = "pagurus-hold-in-"
	outTable = "pagurus-hold-out-"
)

// priority comes before connection tracking and whatever the host has.
var priority = nftables.ChainPriorityRef(-500)

// sets are the flows in the forms in which packets can be looked up.
type sets struct {
	network      uint16
	addresses    uint32 // where the source address begins in the IP header; the destination's follows
	addressBytes uint32
	datatype     nftables.SetDatatype
}

var families = []sets{
	{network: unix.ETH_P_IP, addresses: 12, addressBytes: 4, datatype: nftables.TypeIPAddr},
	{network: unix.ETH_P_IPV6, addresses: 8, addressBytes: 16, datatype: nftables.TypeIP6Addr},
}

// A stage is what is held back of the flows.
type stage string

const (
	handshakes stage = "-syn" // segments that begin a connection
	everything stage = ""
	strays     stage = "-rst" // of what goes out: resets that answer segments without a socket
)

// installing is held while sets are made: the library numbers them by a variable that
// nothing else guards (nftables.allocSetID).
var installing sync.Mutex

// install puts rules in that match nothing yet. Packets that are to be held go to
// the device with this index.
func install(c *Config, device int) error {
	installing.Lock()
	defer installing.Unlock()
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	in, out := conn.AddTable(table(c.Name, incoming)), conn.AddTable(table(c.Name, outgoing))
	drop := []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}
	keep := append([]expr.Any{
		&expr.Counter{},
		&expr.Immediate{Register: 1, Data: binaryutil.NativeEndian.PutUint32(uint32(device))},
		&expr.Dup{RegDev: 1, IsRegDevSet: true},
	}, drop...)

	var chains []*nftables.Chain
	for i, device := range c.Devices {
		chains = append(chains, conn.AddChain(&nftables.Chain{
			Table: in, Name: fmt.Sprint("in-", i), Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookIngress, Priority: priority, Device: device,
		}))
	}
	output := conn.AddChain(&nftables.Chain{
		Table: out, Name: "out", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookOutput, Priority: priority,
	})
	for f, width := range c.kinds() {
		for _, stage := range []stage{handshakes, everything} {
			set := f.set(in, width, stage)
			if err := conn.AddSet(set, nil); err != nil {
				return err
			}
			for _, protocol := range width.protocols(stage) {
				for _, chain := range chains {
					conn.AddRule(&nftables.Rule{Table: in, Chain: chain, Exprs: slices.Concat(fresh, f.match(set, protocol, width, incoming), stage.match(), keep)})
				}
			}
		}
		for _, stage := range []stage{everything, strays} {
			set := f.set(out, width, stage)
			if err := conn.AddSet(set, nil); err != nil {
				return err
			}
			conn.AddRule(&nftables.Rule{Table: out, Chain: output, Exprs: slices.Concat(f.match(set, protocolTCP, width, outgoing), stage.match(), drop)})
			if stage == strays {
				conn.AddRule(&nftables.Rule{Table: out, Chain: output, Exprs: slices.Concat(mute, f.match(set, protocolTCP, width, outgoing), drop)})
			}
		}
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("installing the firewall's rules: %w", err)
	}
	return nil
}

// fresh begins a rule for packets that were not held before, at the loopback device.
var fresh = []expr.Any{
	&expr.Meta{Key: expr.MetaKeyPRIORITY, Register: 1},
	&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(tcprepair.Priority)},
}

// mute begins a rule for packets that nobody is to get.
var mute = []expr.Any{
	&expr.Meta{Key: expr.MetaKeyPRIORITY, Register: 1},
	&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(tcprepair.Mute)},
}

// kinds are the forms that the flows have.
func (c *Config) kinds() iter.Seq2[*sets, width] {
	return func(yield func(*sets, width) bool) {
		for i := range families {
			for _, width := range []width{withPeers, withPorts, addressesOnly} {
				wanted := c.Peers && width == withPeers || len(families[i].elements(c.Flows, width, incoming)) > 0
				if wanted && !yield(&families[i], width) {
					return
				}
			}
		}
	}
}

// match ends a rule with what a stage is about.
func (s stage) match() []expr.Any {
	// Of the flags (RFC 9293, 3.1) those that are looked at, and those that are set.
	const flags, fin, syn, rst, ack = 13, 1 << 0, 1 << 1, 1 << 2, 1 << 4
	var mask, value byte
	switch s {
	case everything:
		return nil
	case handshakes:
		mask, value = fin|syn|rst|ack, syn
	case strays: // other resets acknowledge something (RFC 9293, 3.5.2)
		mask, value = rst|ack, rst
	}
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: flags, Len: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{mask}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{value}},
	}
}

// begin makes the rules match what a stage is about, at once.
func begin(c *Config, s stage) error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	in, out := table(c.Name, incoming), table(c.Name, outgoing)
	for f, width := range c.kinds() {
		if err := add(conn, f.set(in, width, s), f.elements(c.Flows, width, incoming)); err != nil {
			return err
		}
		if s == handshakes {
			continue
		}
		if err := add(conn, f.set(out, width, s), f.elements(c.Flows, width, outgoing)); err != nil {
			return err
		}
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("filling the firewall's sets: %w", err)
	}
	return nil
}

// add puts elements into a set, if there are any.
func add(conn *nftables.Conn, set *nftables.Set, elements []nftables.SetElement) error {
	for some := range slices.Chunk(elements, mostElements) {
		if err := conn.SetAddElements(set, some); err != nil {
			return err
		}
	}
	return nil
}

// mostElements is how many fit into one attribute of netlink, which has 64 KiB at most.
const mostElements = 500

// letOut makes the rules for what goes out match but strays, at once.
func letOut(c *Config) error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	out := table(c.Name, outgoing)
	for f, width := range c.kinds() {
		conn.FlushSet(f.set(out, width, everything))
		if err := add(conn, f.set(out, width, strays), f.elements(c.Flows, width, outgoing)); err != nil {
			return err
		}
	}
	if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) { // it is gone
		return fmt.Errorf("letting packets out: %w", err)
	}
	return nil
}

// letThrough makes the rules of one direction match nothing any more.
func letThrough(name string, d direction) error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	sets, err := conn.GetSets(table(name, d))
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("listing what is held: %w", err)
	}
	for _, set := range sets {
		conn.FlushSet(set)
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("letting packets through: %w", err)
	}
	return nil
}

// counted returns how many packets the rules have held in all.
func counted(name string) (held int, err error) {
	conn, err := nftables.New()
	if err != nil {
		return 0, err
	}
	in := table(name, incoming)
	chains, err := conn.ListChainsOfTableFamily(nftables.TableFamilyNetdev)
	if err != nil {
		return 0, fmt.Errorf("listing chains: %w", err)
	}
	for _, chain := range chains {
		if chain.Table.Name != in.Name {
			continue
		}
		rules, err := conn.GetRules(in, chain)
		if err != nil {
			return 0, fmt.Errorf("listing rules: %w", err)
		}
		for _, rule := range rules {
			for _, e := range rule.Exprs {
				if counter, ok := e.(*expr.Counter); ok {
					held += int(counter.Packets)
				}
			}
		}
	}
	return held, nil
}

// installed are the names of holds with rules.
func installed() ([]string, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, err
	}
	tables, err := conn.ListTables()
	if err != nil {
		return nil, fmt.Errorf("listing firewall tables: %w", err)
	}
	var names []string
	for _, t := range tables {
		for _, prefix := range []string{inTable, outTable} {
			if name, ok := strings.CutPrefix(t.Name, prefix); ok {
				names = append(names, name)
			}
		}
	}
	return names, nil
}

// table is the one of a hold that has the rules for a direction.
func table(name string, d direction) *nftables.Table {
	if d == outgoing {
		return &nftables.Table{Family: nftables.TableFamilyINet, Name: outTable + name}
	}
	return &nftables.Table{Family: nftables.TableFamilyNetdev, Name: inTable + name}
}

// uninstall takes the rules for one direction away, if they are there.
func uninstall(name string, d direction) error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	conn.DelTable(table(name, d))
	if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("removing the firewall's rules: %w", err)
	}
	return nil
}

type direction bool

const (
	incoming direction = false
	outgoing direction = true
)

// A width is how much of a packet is looked at.
type width uint8

const (
	withPeers width = iota
	withPorts
	addressesOnly
)

func (f *Flow) width() width {
	switch {
	case f.Remote.IsValid():
		return withPeers
	case f.Local.Port() != 0:
		return withPorts
	}
	return addressesOnly
}

// protocols are what is held back at a stage. The rules find the protocol in every
// fragment, also behind headers of IPv6 (nft_set_pktinfo_ipv4, ipv6_find_hdr), but ports
// in the first ones alone (nft_payload_eval): who looks at ports cannot hold datagrams.
func (w width) protocols(s stage) []byte {
	if w == addressesOnly && s == everything {
		return []byte{protocolTCP, protocolUDP}
	}
	return []byte{protocolTCP}
}

// set is a set of the local ends of flows of that width.
func (f *sets) set(t *nftables.Table, w width, s stage) *nftables.Set {
	name := fmt.Sprintf("ip%d%s", 8*f.addressBytes, s)
	types := []nftables.SetDatatype{f.datatype, nftables.TypeInetService}
	switch w {
	case withPeers:
		name += "-peers"
		types = append(types, types...)
	case addressesOnly:
		return &nftables.Set{Table: t, Name: name + "-all", KeyType: f.datatype}
	}
	return &nftables.Set{Table: t, Name: name, KeyType: nftables.MustConcatSetType(types...), Concatenation: true}
}

func (f *sets) elements(flows []Flow, w width, d direction) []nftables.SetElement {
	var all []nftables.SetElement
	seen := make(map[string]bool)
	for _, flow := range flows {
		local := flow.Local.Addr().Unmap()
		if flow.width() != w || local.Is4() != (f.addressBytes == 4) {
			continue
		}
		key := field(flow.Local)
		switch {
		case w == addressesOnly:
			key = local.AsSlice()
		case w == withPeers && d == incoming:
			key = append(field(flow.Remote), key...)
		case w == withPeers:
			key = append(key, field(flow.Remote)...)
		}
		if !seen[string(key)] {
			seen[string(key)] = true
			all = append(all, nftables.SetElement{Key: key})
		}
	}
	return all
}

// field is an address and a port, each filling registers of four bytes.
func field(a netip.AddrPort) []byte {
	b := binary.BigEndian.AppendUint16(a.Addr().Unmap().AsSlice(), a.Port())
	return append(b, 0, 0)
}

// match begins a rule for what flows in the set have of a protocol.
func (f *sets) match(set *nftables.Set, protocol byte, w width, d direction) []expr.Any {
	exprs := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, f.network)},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{protocol}},
	}
	// Registers of four bytes are numbered from 8 on (NFT_REG32_00).
	register := uint32(unix.NFT_REG32_00)
	load := func(source bool) {
		address, port := f.addresses, uint32(0)
		if !source {
			address, port = address+f.addressBytes, 2
		}
		exprs = append(exprs, &expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: address, Len: f.addressBytes})
		if w != addressesOnly {
			exprs = append(exprs, &expr.Payload{DestRegister: register + f.addressBytes/4, Base: expr.PayloadBaseTransportHeader, Offset: port, Len: 2})
		}
		register += f.addressBytes/4 + 1
	}
	if w == withPeers || d == outgoing {
		load(true)
	}
	if w == withPeers || d == incoming {
		load(false)
	}
	return append(exprs, &expr.Lookup{SourceRegister: unix.NFT_REG32_00, SetName: set.Name, SetID: set.ID})
}
