package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate"
)

// An edge is what a client does around the freeze, in three steps.
type edge struct {
	name                  string
	before, during, after func(*talk) error
}

var edges = []edge{
	{
		name:   "all queues are full, and the window is closed",
		before: func(k *talk) error { return errors.Join(k.dial(nil), k.writeMany()) },
		after:  (*talk).readMany,
	},
	{
		name: "small windows",
		before: func(k *talk) error {
			small := func(fd int) error {
				return errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 8<<10), unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_MAXSEG, 536))
			}
			return errors.Join(k.dial(small), k.writeMany())
		},
		after: (*talk).readMany,
	},
	{
		name:   "the client has said all before",
		before: func(k *talk) error { return errors.Join(k.dial(nil), k.ask("one", 1), k.CloseWrite()) },
		after:  (*talk).readEnd,
	},
	{
		name:   "the server has said all before",
		before: func(k *talk) error { return errors.Join(k.dial(nil), k.ask("enough", 1), k.readEnd()) },
		during: func(k *talk) error { _, err := io.WriteString(k, "more"); return err },
		after: func(k *talk) error {
			_, err := io.WriteString(k, "and more")
			return errors.Join(err, k.CloseWrite())
		},
	},
	{
		name:   "the client asks in the freeze",
		before: func(k *talk) error { return errors.Join(k.dial(nil), k.ask("one", 1)) },
		during: func(k *talk) error { _, err := io.WriteString(k, "two\n"); return err },
		after: func(k *talk) error {
			return errors.Join(k.hear("two", 2), k.ask("three", 3), k.CloseWrite(), k.readEnd())
		},
	},
	{
		name:   "the client says all in the freeze",
		before: func(k *talk) error { return errors.Join(k.dial(nil), k.ask("one", 1)) },
		during: func(k *talk) error { _, err := io.WriteString(k, "two\n"); return errors.Join(err, k.CloseWrite()) },
		after:  func(k *talk) error { return errors.Join(k.hear("two", 2), k.readEnd()) },
	},
	{
		name:   "the client breaks off in the freeze",
		before: func(k *talk) error { return errors.Join(k.dial(nil), k.ask("one", 1)) },
		during: func(k *talk) error { return errors.Join(k.SetLinger(0), k.Close()) },
		after:  func(k *talk) error { return errors.Join(k.dial(nil), k.ask("one", 1), k.CloseWrite(), k.readEnd()) },
	},
	{
		name: "the client connects in the freeze",
		during: func(k *talk) error {
			k.done = make(chan error, 1)
			go func() { k.done <- k.dial(nil) }()
			return nil
		},
		after: func(k *talk) error {
			if err := <-k.done; err != nil {
				return err
			}
			if n := k.sentAgain(); n > 0 {
				k.f.t.Logf("it has sent %d segments again", n)
			}
			return errors.Join(k.ask("one", 1), k.CloseWrite(), k.readEnd())
		},
	},
	{
		name: "the client looks in the freeze whether the server is there",
		before: func(k *talk) error {
			impatient := func(fd int) error {
				return errors.Join(
					unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1),
					unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_KEEPIDLE, 1),
					unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_KEEPINTVL, 1),
					unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_KEEPCNT, 4))
			}
			return errors.Join(k.dial(impatient), k.ask("one", 1))
		},
		during: func(*talk) error {
			<-time.After(2500 * time.Millisecond) // two of its four tries
			return nil
		},
		after: func(k *talk) error {
			<-time.After(3 * time.Second) // more than the rest of them
			return errors.Join(k.ask("two", 2), k.CloseWrite(), k.readEnd())
		},
	},
	{
		name:   "the way from the destination has a smaller MTU",
		before: func(k *talk) error { return errors.Join(k.setMTU("host-b", 1300), k.dial(nil), k.writeMany()) },
		after:  (*talk).readMany,
	},
	{
		name:   "the way from the source has a smaller MTU",
		before: func(k *talk) error { return errors.Join(k.setMTU("host-a", 1300), k.dial(nil), k.writeMany()) },
		after:  (*talk).readMany,
	},
	{
		name:   "what the client has said is out of order, and what is missing comes in the freeze",
		before: (*talk).sayOutOfOrder,
		during: func(k *talk) error {
			sent := k.sentAgain()
			return errors.Join(k.loseNothing(), k.await("what was lost to be sent again", func(i *unix.TCPInfo) bool { return int(i.Total_retrans) > sent }))
		},
		after: (*talk).hearInOrder,
	},
	{
		name:   "what the client has said is out of order, and what is missing comes afterwards",
		before: (*talk).sayOutOfOrder,
		after:  func(k *talk) error { return errors.Join(k.loseNothing(), k.hearInOrder()) },
	},
	{
		name:   "what the server has said is out of order, and what is missing comes with the new host's first words",
		before: (*talk).hearOutOfOrder,
		during: (*talk).loseNothing,
		after:  (*talk).hearInOrder,
	},
	{
		name:   "what the server has said is out of order, and what is missing comes later",
		before: (*talk).hearOutOfOrder,
		after:  func(k *talk) error { return errors.Join(k.loseNothing(), k.hearInOrder()) },
	},
}

// setMTU bounds what a host sends to others, by its routes, until the test is over: a pair of
// virtual devices would also take nothing in that is longer than its own MTU, where network
// cards do, and what the client sends would be lost without a word.
func (k *talk) setMTU(name string, mtu int) error {
	family := netlink.FAMILY_V4
	if k.at.Addr().Is6() {
		family = netlink.FAMILY_V6
	}
	set := func(mtu int) error {
		return within(k.f.t, name, func() error {
			link, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			routes, err := netlink.RouteList(link, family)
			for i := range routes {
				routes[i].MTU = mtu
				err = errors.Join(err, netlink.RouteReplace(&routes[i]))
			}
			return err
		})
	}
	k.f.t.Cleanup(func() {
		if err := set(0); err != nil {
			k.f.t.Error(err)
		}
	})
	return set(mtu)
}

// alongFault6 is a second service address of its process.
var alongFault6 = netip.MustParsePrefix("fd77::110/64")

// TestEdges: whatever a client does just before, in or just after the freeze, it is
// served as if nothing had happened, and nobody is reset: when the server has moved, and
// when it could not. One client does it by IPv4, and one by IPv6.
func TestEdges(t *testing.T) {
	for _, e := range edges {
		t.Run(e.name, func(t *testing.T) { e.move(t, "host-a", "promised", migrate.StateDone) })
		t.Run(e.name+", aborted", func(t *testing.T) { e.move(t, "host-b", "built", migrate.StateAborted) })
	}
}

// move has it happen while an agent is held at a point of a migration.
func (e *edge) move(t *testing.T, held, point string, outcome migrate.State) {
	at4, at6 := netip.AddrPortFrom(alongFault.Addr(), 7351), netip.AddrPortFrom(alongFault6.Addr(), 7351)
	f := newFaultAt(t, held, point, at4.String()+","+at6.String(), alongFault6)
	talks := []*talk{{f: f, name: "IPv4", at: at4}, {f: f, name: "IPv6", at: at6}}
	var wires []*tap
	for _, k := range talks {
		wires = append(wires, newTap(t, k.at))
		t.Cleanup(func() {
			if k.TCPConn != nil {
				_ = k.Close() // where it has not come to that
			}
		})
	}
	step := func(what string, do func(*talk) error) {
		t.Helper()
		if do == nil {
			return
		}
		var all sync.WaitGroup
		for _, k := range talks {
			all.Go(func() {
				if err := do(k); err != nil {
					t.Errorf("%s, %s the freeze: %v", k.name, what, err)
				}
			})
		}
		all.Wait()
		if t.Failed() {
			t.Fatal(bed.Logs("host-a", "host-b"))
		}
	}
	step("before", e.before)
	f.begin()
	f.await("the migration to be held", f.isHeld)
	step("in", e.during)
	if outcome == migrate.StateAborted {
		cancelled := make(chan error, 1)
		go func() { cancelled <- f.command("cancel", f.id).Run() }() // which waits for both sides
		f.await("the process to go on", func() bool { return !f.frozen() })
		defer func() {
			if err := <-cancelled; err != nil {
				t.Errorf("cancelling: %v", err)
			}
		}()
	}
	f.letGo()
	f.judge([]migrate.State{outcome})
	step("after", e.after)
	if err := f.clients.End(); err != nil {
		t.Error(err)
	}
	for _, w := range wires {
		w.judge("host-a", f.process.Host)
	}
}

// TestClosedBefore: what a program has said before it has closed a connection arrives,
// however slow its client is: the move waits for that.
func TestClosedBefore(t *testing.T) {
	need(t, "python3")
	const bytes = 300_000
	ctx := limit(t, time.Minute)
	p := netip.MustParsePrefix("10.77.0.111/24")
	at := netip.AddrPortFrom(p.Addr(), 7344)
	addAddress(ctx, t, p, "host-a")
	server := start(ctx, t, "host-a", "python3", script(t, "leave.py"), at.Addr().String(), fmt.Sprint(at.Port()), fmt.Sprint(bytes), "$ASK")
	for _, to := range []string{"host-b", "host-a"} {
		var conn net.Conn
		if err := within(t, "client", func() (err error) {
			d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
				return c.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 8<<10) })
			}}
			conn, err = d.DialContext(ctx, "tcp", at.String())
			return err
		}); err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		read := make(chan error, 1)
		go func() {
			<-time.After(1500 * time.Millisecond)
			n, err := io.Copy(io.Discard, conn)
			if err == nil && n != bytes {
				err = fmt.Errorf("%d bytes instead of %d", n, bytes)
			}
			read <- err
		}()
		r := moved(ctx, t, server, to)
		if err := <-read; err != nil {
			t.Error(err)
		}
		if r.TotalMS < 1000 {
			t.Errorf("the move has not waited: %.0f ms", r.TotalMS)
		}
	}
}

// TestManyConnections moves a thousand.
func TestManyConnections(t *testing.T) {
	const many = 1000
	ctx := limit(t, 3*time.Minute)
	p := netip.MustParsePrefix("10.77.0.106/24")
	at := netip.AddrPortFrom(p.Addr(), 7343)
	addAddress(ctx, t, p, "host-a")
	raiseDescriptors(t, 4*many)
	server := start(ctx, t, "host-a", "sh", "-c", `ulimit -n 4096 && exec "$@"`, "sh", "$BIN/workload", "memory", "-size", "16MiB", "-echo", at.String(), "-ask", "$ASK")
	clients := dialAll(ctx, t, at, many)
	askAll := func() {
		t.Helper()
		for i, c := range clients {
			if err := c.Ask(); err != nil {
				t.Fatalf("client %d: %v", i, err)
			}
		}
	}
	askAll()
	for _, to := range []string{"host-b", "host-a"} {
		moved(ctx, t, server, to)
		askAll()
	}
	if err := clients.End(); err != nil {
		t.Error(err)
	}
}

// raiseDescriptors lets this process have n of them.
func raiseDescriptors(t *testing.T, n uint64) {
	t.Helper()
	var limit unix.Rlimit
	err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit)
	if err == nil && limit.Cur < n {
		limit.Cur = min(n, limit.Max)
		err = unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)
	}
	if err != nil {
		t.Fatal(err)
	}
}
