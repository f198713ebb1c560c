package forward

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	rtnetlink "github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// homeTable has a forward's name behind it.
const homeTable = "pagurus-forward-"

// priority comes before that of a hold, so that what is forwarded is not held.
const priority = -510

// inChain has the name of the device behind it, at which it looks at what comes in.
const inChain = "in-"

// A Forward is which connections' packets a host passes on to which other host.
type Forward struct {
	Name    string   // distinguishes those of one host: 64 letters, digits, ".", "_", "-" at most
	Devices []string // through which the packets come in
	Flows   []Flow   // of TCP, each with both ends
	To      Neighbor

	// Packets is how many have been passed on, since the last Set. The kernel may have
	// put several of one connection together to one. List fills it in, Set does not look.
	Packets uint64
}

func table(name string) *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyNetdev, Name: homeTable + name}
}

// Set passes the packets of these connections on from now on; what has the same name is
// replaced. A packet that comes meanwhile is treated in one way or the other: one that is
// forwarded before and afterwards never gets to this host. Those that are on their way
// through this host may still go the old one when Set returns.
func Set(f Forward) error {
	if err := validate(f.Name, f.Flows); err != nil {
		return err
	}
	if len(f.Devices) == 0 {
		return fmt.Errorf("%w: no devices", ErrInvalid)
	}
	for _, device := range f.Devices { // newer kernels take any name, and wait for it
		if _, err := rtnetlink.LinkByName(device); err != nil {
			return fmt.Errorf("looking for the device %q: %w", device, err)
		}
	}
	link, err := f.To.link()
	if err != nil {
		return err
	}
	for i := range families {
		if v := &families[i]; len(v.keys(f.Flows)) > 0 && !v.has(f.To.address(v)) {
			return fmt.Errorf("%w: some flows are of a version of IP in which the neighbour has no address", ErrInvalid)
		}
	}
	old, err := chains(table(f.Name))
	if err != nil {
		return err
	}
	b := batch{table: table(f.Name)}
	b.addTable()
	b.fill(f.Flows)
	// Chains that go on are kept. A new one in an old one's place would be called only by
	// packets that look for it after it was made.
	for _, device := range f.Devices {
		chain := inChain + device
		b.addChain(hook{chain, nftables.ChainTypeFilter, nftables.ChainHookIngress, priority, device})
		b.flushChain(chain)
		for i := range families {
			v := &families[i]
			if to := f.To.address(v); v.has(to) {
				b.addRule(chain, append(v.match(), send(v, link.Attrs().Index, to)...)...)
			}
		}
	}
	for _, chain := range old {
		if !slices.Contains(f.Devices, strings.TrimPrefix(chain, inChain)) {
			b.deleteChain(chain)
		}
	}
	if err := b.commit(); err != nil {
		return fmt.Errorf("installing the firewall's rules: %w", err)
	}
	return nil
}

// send ends a rule: the packet is counted and goes out.
func send(f *family, device int, to netip.Addr) []any {
	const deviceRegister, addressRegister = unix.NFT_REG_1, unix.NFT_REG_2
	e := netlink.NewAttributeEncoder()
	e.ByteOrder = binary.BigEndian
	e.String(unix.NFTA_EXPR_NAME, "fwd")
	e.Nested(unix.NFTA_EXPR_DATA, func(e *netlink.AttributeEncoder) error {
		e.Uint32(nftaFwdSregDev, deviceRegister)
		e.Uint32(nftaFwdSregAddr, addressRegister)
		e.Uint32(nftaFwdNfproto, uint32(f.domain))
		return nil
	})
	encoded, _ := e.Encode() // of what never fails
	return []any{
		&expr.Counter{},
		&expr.Immediate{Register: deviceRegister, Data: binaryutil.NativeEndian.PutUint32(uint32(device))},
		&expr.Immediate{Register: addressRegister, Data: to.AsSlice()},
		encoded,
	}
}

// Remove ends the forwarding with this name, if there is one: from now on the packets are
// this host's own.
func Remove(name string) error {
	if err := validate(name, nil); err != nil {
		return err
	}
	return remove(table(name))
}

// Drop ends it for some of the connections. With the last one all of it goes.
func Drop(name string, gone []Flow) error {
	if err := validate(name, gone); err != nil {
		return err
	}
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	all, ok, err := flows(conn, table(name))
	if err != nil || !ok {
		return err
	}
	left := without(all, gone)
	if len(left) == 0 {
		return Remove(name)
	}
	b := batch{table: table(name)}
	for i := range families {
		f := &families[i]
		b.deleteElements(f, f.keys(without(all, left)))
	}
	if err := b.commit(); err != nil && !errors.Is(err, unix.ENOENT) { // somebody else did
		return fmt.Errorf("emptying the firewall's sets: %w", err)
	}
	return nil
}

// List tells what this host forwards, from the kernel's own tables.
func List() ([]Forward, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, err
	}
	names, err := named(conn, nftables.TableFamilyNetdev, homeTable)
	if err != nil {
		return nil, err
	}
	var all []Forward
	for _, name := range names {
		f := Forward{Name: name}
		var ok bool
		if f.Flows, ok, err = flows(conn, table(name)); err != nil {
			return nil, err
		}
		if !ok { // it was just removed
			continue
		}
		if err := f.read(conn); err != nil {
			return nil, err
		}
		all = append(all, f)
	}
	return all, nil
}

// read looks at the chains of a forward.
func (f *Forward) read(conn *nftables.Conn) error {
	names, err := chains(table(f.Name))
	if err != nil {
		return err
	}
	for _, name := range names {
		f.Devices = append(f.Devices, strings.TrimPrefix(name, inChain))
		rules, err := conn.GetRules(table(f.Name), &nftables.Chain{Name: name})
		if there, err1 := exists(conn, table(f.Name)); err != nil && err1 == nil && !there {
			return nil // it was just removed
		}
		if err != nil {
			return fmt.Errorf("listing rules: %w", err)
		}
		for _, rule := range rules {
			for _, e := range rule.Exprs {
				switch e := e.(type) {
				case *expr.Counter:
					f.Packets += e.Packets
				case *expr.Immediate:
					f.To.note(e)
				}
			}
		}
	}
	return nil
}

// note reads what a rule puts into registers for sending.
func (n *Neighbor) note(e *expr.Immediate) {
	switch a, ok := netip.AddrFromSlice(e.Data); {
	case e.Register == unix.NFT_REG_1 && len(e.Data) == 4:
		index := int(binary.NativeEndian.Uint32(e.Data))
		n.Device = fmt.Sprint(index) // is gone
		if link, err := rtnetlink.LinkByIndex(index); err == nil {
			n.Device = link.Attrs().Name
		}
	case ok && a.Is4():
		n.IPv4 = a
	case ok:
		n.IPv6 = a
	}
}

// chains are the names of the chains of a table, which need not be there.
func chains(t *nftables.Table) ([]string, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, err
	}
	all, err := conn.ListChainsOfTableFamily(t.Family)
	if err != nil {
		return nil, fmt.Errorf("listing chains: %w", err)
	}
	var names []string
	for _, c := range all {
		if c.Table.Name == t.Name {
			names = append(names, c.Name)
		}
	}
	slices.Sort(names)
	return names, nil
}
