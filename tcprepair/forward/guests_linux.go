package forward

import (
	"fmt"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
)

// guestTable has the name of some guests behind it.
const guestTable = "pagurus-guests-"

// routing is held while the first guests come, or the last ones go.
var routing sync.Mutex

func guests(name string) *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyINet, Name: guestTable + name}
}

// Admit makes the sockets of these connections guests of this host: packets to them are
// delivered here from now on, though the address is another host's, whether they come in
// or a process of this host sends them. The name distinguishes guests as that of a Forward
// does. What has the same name is replaced, at once.
func Admit(name string, flows []Flow) error {
	if err := validate(name, flows); err != nil {
		return err
	}
	routing.Lock()
	defer routing.Unlock()
	for i := range families {
		if f := &families[i]; len(f.keys(flows)) > 0 {
			if err := f.addRouting(); err != nil {
				return err
			}
		}
	}
	b := batch{table: guests(name)}
	b.addTable()
	b.fill(flows)
	// Before the way is looked for; what goes out has one, and looks again if it is marked.
	for _, h := range []hook{
		{"in", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, int32(*nftables.ChainPriorityMangle), ""},
		{"out", nftables.ChainTypeRoute, nftables.ChainHookOutput, int32(*nftables.ChainPriorityMangle), ""},
	} {
		b.addChain(h)
		b.flushChain(h.chain)
		for i := range families {
			b.addRule(h.chain, append(families[i].match(), mark()...)...)
		}
	}
	if err := b.commit(); err != nil {
		return fmt.Errorf("installing the firewall's rules: %w", err)
	}
	return nil
}

// mark ends a rule: the packet has MarkBit, too.
func mark() []any {
	bit := uint32(MarkBit)
	return []any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Bitwise{
			SourceRegister: 1, DestRegister: 1, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(^bit), Xor: binaryutil.NativeEndian.PutUint32(bit),
		},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1, SourceRegister: true},
	}
}

// Dismiss ends that for the guests of this name, if there are any.
func Dismiss(name string) error {
	if err := validate(name, nil); err != nil {
		return err
	}
	routing.Lock()
	defer routing.Unlock()
	if err := remove(guests(name)); err != nil {
		return err
	}
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	names, err := named(conn, nftables.TableFamilyINet, guestTable)
	if err != nil || len(names) > 0 {
		return err
	}
	return removeRouting()
}

// Guests tells which guests this host has, by name, from the kernel's own tables.
func Guests() (map[string][]Flow, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, err
	}
	names, err := named(conn, nftables.TableFamilyINet, guestTable)
	if err != nil {
		return nil, err
	}
	all := make(map[string][]Flow)
	for _, name := range names {
		list, ok, err := flows(conn, guests(name))
		if err != nil {
			return nil, err
		}
		if ok {
			all[name] = list
		}
	}
	return all, nil
}
