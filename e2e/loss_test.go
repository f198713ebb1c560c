package e2e

import (
	"errors"
	"io/fs"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// lost is how a line begins that the switch may lose.
func (k *talk) lost() string { return "lost by " + k.name }

// tcpHeaderBytes is how long the header is of a segment with time stamps and nothing else,
// as all of a connection have that has lost none.
const tcpHeaderBytes = 32

// lose has the switch lose what comes from hosts in segments that begin with the talk's lost
// line, as often as they are sent, until loseNothing is called or the test is over.
func (k *talk) lose(hosts ...string) error {
	k.f.t.Cleanup(func() {
		if err := k.loseNothing(); err != nil {
			k.f.t.Error(err)
		}
	})
	return within(k.f.t, "switch", func() error {
		conn, err := nftables.New()
		if err != nil {
			return err
		}
		table := conn.AddTable(k.losses())
		for _, name := range hosts {
			chain := conn.AddChain(&nftables.Chain{
				Name: name, Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookIngress,
				Priority: nftables.ChainPriorityFilter, Device: name,
			})
			conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
				&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: tcpHeaderBytes, Len: uint32(len(k.lost()))},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte(k.lost())},
				&expr.Verdict{Kind: expr.VerdictDrop},
			}})
		}
		return conn.Flush()
	})
}

func (k *talk) losses() *nftables.Table {
	return &nftables.Table{Name: "lose-" + k.name, Family: nftables.TableFamilyNetdev}
}

// loseNothing lets through again what was lost.
func (k *talk) loseNothing() error {
	return within(k.f.t, "switch", func() error {
		conn, err := nftables.New()
		if err != nil {
			return err
		}
		conn.DelTable(k.losses())
		if err := conn.Flush(); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	})
}

// outOfOrder are lines of which the first is lost, with what follows the others.
func (k *talk) outOfOrder() []string { return []string{k.lost(), "three", "four", "five"} }

// sayOutOfOrder leaves the client's segments out of order at the server: it has acknowledged
// all but the first one (SACK).
func (k *talk) sayOutOfOrder() error {
	if err := errors.Join(k.dial(nil), k.ask("one", 1), k.lose("client")); err != nil {
		return err
	}
	return errors.Join(k.say(k.outOfOrder()...), k.await("the server to say what it lacks", func(i *unix.TCPInfo) bool {
		return i.Sacked > 0 && i.Unacked == i.Sacked+1
	}))
}

// hearOutOfOrder leaves the server's segments out of order at the client.
func (k *talk) hearOutOfOrder() error {
	if err := errors.Join(k.dial(nil), k.ask("one", 1), k.lose("host-a", "host-b")); err != nil {
		return err
	}
	return errors.Join(k.say(k.outOfOrder()...), k.await("answers to come but the one that is lost", func(i *unix.TCPInfo) bool { return i.Rcv_ooopack > 0 }))
}

// hearInOrder hears all answers to what was out of order, and goes on.
func (k *talk) hearInOrder() error {
	n := 2
	for _, line := range k.outOfOrder() {
		if err := k.hear(line, n); err != nil {
			return err
		}
		n++
	}
	return errors.Join(k.ask("more", n), k.CloseWrite(), k.readEnd())
}
