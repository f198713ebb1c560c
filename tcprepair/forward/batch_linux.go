package forward

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// A batch changes one of the firewall's tables, all at once or not at all. The library of
// hold has no expression that sends a packet to a neighbour, and lets nobody add one:
// what it encodes of a rule is put together with ours here.
type batch struct {
	table    *nftables.Table
	messages []netlink.Message
	errs     []error
}

// add adds one message (nfnetlink.h) with these attributes.
func (b *batch) add(kind int, flags netlink.HeaderFlags, attributes func(*netlink.AttributeEncoder)) {
	e := netlink.NewAttributeEncoder()
	e.ByteOrder = binary.BigEndian
	attributes(e)
	data, err := e.Encode()
	b.errs = append(b.errs, err)
	b.messages = append(b.messages, netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | kind), Flags: netlink.Request | flags},
		Data:   append(header(byte(b.table.Family), 0), data...),
	})
}

// header is struct nfgenmsg (include/uapi/linux/netfilter/nfnetlink.h).
func header(family byte, resource uint16) []byte {
	return binary.BigEndian.AppendUint16([]byte{family, unix.NFNETLINK_V0}, resource)
}

// addTable makes the table, unless it is there.
func (b *batch) addTable() {
	b.add(unix.NFT_MSG_NEWTABLE, netlink.Create, func(e *netlink.AttributeEncoder) {
		e.String(unix.NFTA_TABLE_NAME, b.table.Name)
	})
}

func (b *batch) deleteTable() {
	b.add(unix.NFT_MSG_DELTABLE, 0, func(e *netlink.AttributeEncoder) {
		e.String(unix.NFTA_TABLE_NAME, b.table.Name)
	})
}

// A hook is where a chain of rules is called.
type hook struct {
	chain    string
	kind     nftables.ChainType
	number   *nftables.ChainHook
	priority int32
	device   string // in the family "netdev"
}

// addChain makes a chain, unless it is there.
func (b *batch) addChain(h hook) {
	b.add(unix.NFT_MSG_NEWCHAIN, netlink.Create, func(e *netlink.AttributeEncoder) {
		e.String(unix.NFTA_CHAIN_TABLE, b.table.Name)
		e.String(unix.NFTA_CHAIN_NAME, h.chain)
		e.Nested(unix.NFTA_CHAIN_HOOK, func(e *netlink.AttributeEncoder) error {
			e.Uint32(unix.NFTA_HOOK_HOOKNUM, uint32(*h.number))
			e.Uint32(unix.NFTA_HOOK_PRIORITY, uint32(h.priority))
			if h.device != "" {
				e.String(unix.NFTA_HOOK_DEV, h.device)
			}
			return nil
		})
		e.String(unix.NFTA_CHAIN_TYPE, string(h.kind))
	})
}

// deleteChain takes a chain away, and its rules.
func (b *batch) deleteChain(name string) {
	b.flushChain(name)
	b.add(unix.NFT_MSG_DELCHAIN, 0, func(e *netlink.AttributeEncoder) {
		e.String(unix.NFTA_CHAIN_TABLE, b.table.Name)
		e.String(unix.NFTA_CHAIN_NAME, name)
	})
}

// flushChain takes a chain's rules away.
func (b *batch) flushChain(name string) {
	b.add(unix.NFT_MSG_DELRULE, 0, func(e *netlink.AttributeEncoder) {
		e.String(unix.NFTA_RULE_TABLE, b.table.Name)
		e.String(unix.NFTA_RULE_CHAIN, name)
	})
}

// addRule adds a rule at the end of a chain. An expression is one of the library, or
// one that is encoded already.
func (b *batch) addRule(chain string, expressions ...any) {
	b.add(unix.NFT_MSG_NEWRULE, netlink.Create|netlink.Append, func(e *netlink.AttributeEncoder) {
		e.String(unix.NFTA_RULE_TABLE, b.table.Name)
		e.String(unix.NFTA_RULE_CHAIN, chain)
		e.Nested(unix.NFTA_RULE_EXPRESSIONS, func(e *netlink.AttributeEncoder) error {
			for _, expression := range expressions {
				encoded, ok := expression.([]byte)
				if !ok {
					var err error
					if encoded, err = expr.Marshal(byte(b.table.Family), expression.(expr.Any)); err != nil {
						return err
					}
				}
				e.Bytes(unix.NLA_F_NESTED|unix.NFTA_LIST_ELEM, encoded)
			}
			return nil
		})
	})
}

// addSet makes a set of keys, unless it is there.
func (b *batch) addSet(f *family) {
	keyType := f.keyType()
	b.add(unix.NFT_MSG_NEWSET, netlink.Create, func(e *netlink.AttributeEncoder) {
		e.String(unix.NFTA_SET_TABLE, b.table.Name)
		e.String(unix.NFTA_SET_NAME, f.set())
		e.Uint32(unix.NFTA_SET_ID, f.addressBytes) // any number that no other set of the batch has
		e.Uint32(unix.NFTA_SET_FLAGS, nftSetConcat)
		e.Uint32(unix.NFTA_SET_KEY_TYPE, keyType.GetNFTMagic())
		e.Uint32(unix.NFTA_SET_KEY_LEN, keyType.Bytes)
		e.Nested(unix.NFTA_SET_DESC, func(e *netlink.AttributeEncoder) error {
			e.Nested(nftaSetDescConcat, func(e *netlink.AttributeEncoder) error {
				for _, t := range f.types() {
					e.Nested(unix.NFTA_LIST_ELEM, func(e *netlink.AttributeEncoder) error {
						e.Uint32(nftaSetFieldLen, t.Bytes)
						return nil
					})
				}
				return nil
			})
			return nil
		})
	})
}

func (b *batch) flushSet(f *family) {
	b.add(unix.NFT_MSG_DELSETELEM, 0, func(e *netlink.AttributeEncoder) {
		e.String(unix.NFTA_SET_ELEM_LIST_TABLE, b.table.Name)
		e.String(unix.NFTA_SET_ELEM_LIST_SET, f.set())
	})
}

func (b *batch) addElements(f *family, keys [][]byte) {
	b.elements(unix.NFT_MSG_NEWSETELEM, netlink.Create, f, keys)
}

func (b *batch) deleteElements(f *family, keys [][]byte) {
	b.elements(unix.NFT_MSG_DELSETELEM, 0, f, keys)
}

// mostElements is how many fit into one message, of which an attribute has 64 KiB.
const mostElements = 500

func (b *batch) elements(kind int, flags netlink.HeaderFlags, f *family, keys [][]byte) {
	for some := range slices.Chunk(keys, mostElements) {
		b.add(kind, flags, func(e *netlink.AttributeEncoder) {
			e.String(unix.NFTA_SET_ELEM_LIST_TABLE, b.table.Name)
			e.String(unix.NFTA_SET_ELEM_LIST_SET, f.set())
			e.Nested(unix.NFTA_SET_ELEM_LIST_ELEMENTS, func(e *netlink.AttributeEncoder) error {
				for _, key := range some {
					e.Nested(unix.NFTA_LIST_ELEM, func(e *netlink.AttributeEncoder) error {
						e.Nested(unix.NFTA_SET_ELEM_KEY, func(e *netlink.AttributeEncoder) error {
							e.Bytes(unix.NFTA_DATA_VALUE, key)
							return nil
						})
						return nil
					})
				}
				return nil
			})
		})
	}
}

// commit has the kernel do it. The table is that of the caller's thread's namespace.
func (b *batch) commit() error {
	if err := errors.Join(b.errs...); err != nil || len(b.messages) == 0 {
		return err
	}
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return err
	}
	defer conn.Close()
	mark := func(kind netlink.HeaderType) netlink.Message {
		return netlink.Message{Header: netlink.Header{Type: kind, Flags: netlink.Request}, Data: header(unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)}
	}
	// One answer is enough: errors are told without being asked for, before it.
	b.messages[len(b.messages)-1].Header.Flags |= netlink.Acknowledge
	all := slices.Concat([]netlink.Message{mark(unix.NFNL_MSG_BATCH_BEGIN)}, b.messages, []netlink.Message{mark(unix.NFNL_MSG_BATCH_END)})
	size := 0
	for i := range all {
		size += unix.SizeofNlMsghdr + len(all[i].Data)
	}
	if err := conn.SetWriteBuffer(2 * size); err != nil {
		return fmt.Errorf("making room for what the kernel is told: %w", err)
	}
	sent, err := conn.SendMessages(all)
	if err != nil {
		return err
	}
	last := sent[len(sent)-2].Header.Sequence
	for {
		answers, err := conn.Receive()
		if err != nil {
			return err
		}
		for _, a := range answers {
			if a.Header.Sequence == last {
				return nil
			}
		}
	}
}
