package hold

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A pair is two networks of their own, joined by a cable. The test's goroutine is
// in the server's.
type pair struct {
	t              *testing.T
	client         func(func() error) error // runs in the client's network
	domain         int
	serverAddr     netip.Addr
	prefix         string
	server, opened end // a listener, and an accepted connection
	peer           end // its other end
}

type end struct {
	t  *testing.T
	fd int
}

func inClient() (run func(func() error) error, namespace int, err error) {
	requests, answers := make(chan func() error), make(chan error)
	go func() {
		runtime.LockOSThread()
		for f := range requests {
			answers <- f()
		}
	}()
	run = func(f func() error) error {
		requests <- f
		return <-answers
	}
	err = run(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		namespace, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		return err
	})
	return run, namespace, err
}

func newPair(t *testing.T, ipv6 bool) *pair {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	t.Parallel()
	run, namespace, err := inClient()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(namespace) })
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	p := &pair{t: t, client: run, domain: unix.AF_INET, serverAddr: netip.MustParseAddr("10.9.0.1")}
	clientAddr := "10.9.0.2/24"
	if ipv6 {
		p.domain, p.serverAddr, clientAddr = unix.AF_INET6, netip.MustParseAddr("fd09::1"), "fd09::2/64"
	}
	err = netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "wire"}, PeerName: "wire", PeerNamespace: netlink.NsFd(namespace)})
	bits := 24
	if ipv6 {
		bits = 64
	}
	up := func(address string) error {
		addr, err := netlink.ParseAddr(address)
		if err != nil {
			return err
		}
		addr.Flags = unix.IFA_F_NODAD
		wire, err1 := netlink.LinkByName("wire")
		lo, err2 := netlink.LinkByName("lo")
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		return errors.Join(netlink.LinkSetUp(lo), netlink.LinkSetUp(wire), netlink.AddrAdd(wire, addr))
	}
	p.prefix = netip.PrefixFrom(p.serverAddr, bits).String()
	// The server has a first address, too, as hosts do.
	if err := errors.Join(err, up(netip.PrefixFrom(p.serverAddr.Next().Next().Next(), bits).String()), up(p.prefix)); err != nil {
		t.Fatal(err)
	}
	if err := run(func() error { return up(clientAddr) }); err != nil {
		t.Fatal(err)
	}
	p.server = p.socket()
	if err := errors.Join(unix.Bind(p.server.fd, p.address(0)), unix.Listen(p.server.fd, 10)); err != nil {
		t.Fatal(err)
	}
	p.peer = p.dial(0)
	fd, _, err := acceptFrom(p.server.fd)
	if err != nil {
		t.Fatal(err)
	}
	p.opened = end{t, fd}
	return p
}

func (p *pair) address(port int) unix.Sockaddr {
	if p.domain == unix.AF_INET6 {
		return &unix.SockaddrInet6{Addr: p.serverAddr.As16(), Port: port}
	}
	return &unix.SockaddrInet4{Addr: p.serverAddr.As4(), Port: port}
}

func (p *pair) socket() end {
	p.t.Helper()
	fd, err := unix.Socket(p.domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	limit := unix.Timeval{Sec: 10}
	if err == nil {
		err = errors.Join(
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit),
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit))
	}
	if err != nil {
		p.t.Fatal(err)
	}
	return end{p.t, fd}
}

// dial connects from the client's network to the listener.
func (p *pair) dial(flags int) end {
	p.t.Helper()
	var e end
	err := p.client(func() error {
		e = p.socket()
		if err := unix.SetNonblock(e.fd, flags == unix.SOCK_NONBLOCK); err != nil {
			return err
		}
		return unix.Connect(e.fd, p.address(p.port()))
	})
	if err != nil && !errors.Is(err, unix.EINPROGRESS) {
		p.t.Fatal(err)
	}
	return e
}

func (p *pair) port() int { return int(p.server.local().Port()) }

func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

func (e end) local() netip.AddrPort {
	e.t.Helper()
	sa, err := unix.Getsockname(e.fd)
	if err != nil {
		e.t.Fatal(err)
	}
	return addrPort(sa)
}

func (e end) write(text string) {
	e.t.Helper()
	for text != "" {
		n, err := writeTo(e.fd, []byte(text))
		if err != nil {
			e.t.Fatal(err)
		}
		text = text[n:]
	}
}

func (e end) expect(text string) {
	e.t.Helper()
	var got []byte
	for len(got) < len(text) {
		buf := make([]byte, len(text)-len(got))
		n, err := readFrom(e.fd, buf)
		if err != nil || n == 0 {
			e.t.Fatalf("reading, after %d of %d bytes: %d, %v", len(got), len(text), n, err)
		}
		got = append(got, buf[:n]...)
	}
	if string(got) != text {
		e.t.Errorf("read something else than was written")
	}
}

func (e end) readable() int {
	e.t.Helper()
	n, err := unix.IoctlGetInt(e.fd, unix.SIOCINQ)
	if err != nil {
		e.t.Fatal(err)
	}
	return n
}

func (e end) retransmissions() uint32 {
	e.t.Helper()
	info, err := unix.GetsockoptTCPInfo(e.fd, unix.SOL_TCP, unix.TCP_INFO)
	if err != nil {
		e.t.Fatal(err)
	}
	return info.Total_retrans
}

func (p *pair) hold() *Hold {
	p.t.Helper()
	h, err := start(Config{
		Name: "test", Devices: []string{"wire", "lo"},
		Flows: []Flow{{Local: p.opened.local(), Remote: p.peer.local()}, {Local: p.server.local()}},
	})
	if err != nil {
		p.t.Fatal(err)
	}
	return h
}

func (h *Hold) awaitHeld(t *testing.T, packets int) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; {
		held, lost := h.Held()
		if lost > 0 {
			t.Fatalf("%d packets lost", lost)
		}
		if held >= packets {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d packets held instead of %d", held, packets)
		}
		runtime.Gosched()
	}
}

func eachFamily(t *testing.T, f func(*testing.T, *pair)) {
	for name, ipv6 := range map[string]bool{"IPv4": false, "IPv6": true} {
		t.Run(name, func(t *testing.T) { f(t, newPair(t, ipv6)) })
	}
}

// patience is less than any retransmission time-out. On a busy machine a hold can
// last longer, and a peer sends again.
const patience = 150 * time.Millisecond

// What a peer sends while it is held arrives afterwards, in order, and the peer
// sends nothing twice. A new connection is made without a second SYN.
func TestDelivered(t *testing.T) {
	eachFamily(t, func(t *testing.T, p *pair) {
		p.peer.write("before")
		p.opened.expect("before")
		begun := time.Now()
		h := p.hold()
		sent := ""
		for i := range 20 {
			part := strings.Repeat(string(rune('a'+i)), 100)
			p.peer.write(part)
			sent += part
		}
		fresh := p.dial(unix.SOCK_NONBLOCK)
		h.awaitHeld(t, 2)
		if n := p.opened.readable(); n != 0 {
			t.Errorf("%d bytes came through", n)
		}
		if err := release(t, h); err != nil {
			t.Fatal(err)
		}
		quick := time.Since(begun) < patience
		p.opened.expect(sent)
		fd, from, err := acceptFrom(p.server.fd)
		if err != nil {
			t.Fatal(err)
		}
		if addrPort(from) != fresh.local() {
			t.Errorf("a connection from %v instead of %v", addrPort(from), fresh.local())
		}
		if err := unix.SetNonblock(fresh.fd, false); err != nil {
			t.Fatal(err)
		}
		end{t, fd}.write("welcome")
		fresh.expect("welcome")
		for _, e := range []end{p.peer, fresh} {
			if n := e.retransmissions(); n > 0 && quick {
				t.Errorf("a peer has sent %d segments again", n)
			}
		}
		p.peer.write("after")
		p.opened.expect("after")
		clean(t)
	})
}

// Connections can be chosen when they are to be held, and others the next time.
func TestFlows(t *testing.T) {
	eachFamily(t, func(t *testing.T, p *pair) {
		other := p.dial(0)
		fd, _, err := acceptFrom(p.server.fd)
		if err != nil {
			t.Fatal(err)
		}
		opened := end{t, fd}
		defer unix.Close(fd)
		h, err := Prepare(Config{Name: "test", Devices: []string{"wire", "lo"}, Peers: true})
		if err != nil {
			t.Fatal(err)
		}
		if err := h.LetOut(); err != nil { // of what was never begun
			t.Fatal(err)
		}
		if err := h.BeginFlows([]Flow{{Local: p.server.local()}}); !errors.Is(err, ErrInvalid) {
			t.Errorf("without peers: %v", err)
		}
		for range 2 {
			for _, chosen := range []struct{ held, not [2]end }{{[2]end{p.opened, p.peer}, [2]end{opened, other}}, {[2]end{opened, other}, [2]end{p.opened, p.peer}}} {
				if err := h.BeginFlows([]Flow{{Local: chosen.held[0].local(), Remote: chosen.held[1].local()}}); err != nil {
					t.Fatal(err)
				}
				chosen.held[1].write("held")
				chosen.not[1].write("not held")
				h.awaitHeld(t, 1)
				chosen.not[0].expect("not held")
				if n := chosen.held[0].readable(); n != 0 {
					t.Errorf("%d bytes came through", n)
				}
				if err := h.Deliver(t.Context()); err != nil {
					t.Fatal(err)
				}
				chosen.held[0].expect("held")
			}
		}
		if err := h.Close(); err != nil {
			t.Fatal(err)
		}
		clean(t)
	})
}

// While only handshakes are held, connections go on, and those that have begun come
// to be; new ones are made afterwards.
func TestHandshakes(t *testing.T) {
	eachFamily(t, func(t *testing.T, p *pair) {
		h, err := Prepare(p.all())
		if err != nil {
			t.Fatal(err)
		}
		p.peer.write("prepared")
		p.opened.expect("prepared")
		if err := h.BeginHandshakes(); err != nil {
			t.Fatal(err)
		}
		fresh := p.dial(unix.SOCK_NONBLOCK)
		h.awaitHeld(t, 1)
		p.peer.write("goes on")
		p.opened.expect("goes on")
		p.opened.write("both ways")
		p.peer.expect("both ways")
		if err := h.Begin(); err != nil {
			t.Fatal(err)
		}
		p.peer.write("held")
		h.awaitHeld(t, 2)
		if n := p.opened.readable(); n != 0 {
			t.Errorf("%d bytes came through", n)
		}
		if err := release(t, h); err != nil {
			t.Fatal(err)
		}
		p.opened.expect("held")
		fd, from, err := acceptFrom(p.server.fd)
		if err != nil || addrPort(from) != fresh.local() {
			t.Fatalf("a connection from %v instead of %v: %v", addrPort(from), fresh.local(), err)
		}
		unix.Close(fd)
		clean(t)
	})
}

// When another host has the address, what was held and what still comes goes there,
// and nothing that this host says in its name gets out until that is over.
func TestForwarded(t *testing.T) {
	eachFamily(t, func(t *testing.T, p *pair) {
		heir := p.watch()
		if err := unix.SetsockoptInt(p.peer.fd, unix.SOL_TCP, unix.TCP_NODELAY, 1); err != nil { // nobody answers
			t.Fatal(err)
		}
		h := p.holdAll()
		p.peer.write(strings.Repeat("much ", 2000) + "held") // is more than goes out at once
		h.awaitHeld(t, 1)
		p.leave()
		p.bequeath()
		heard := make(chan error, 1)
		go func() { // in the client's network, that is
			err := heir.await("held")
			if err == nil {
				_, err = writeTo(p.peer.fd, []byte("late"))
			}
			if err == nil {
				err = heir.await("late")
			}
			heard <- err
		}()
		if err := errors.Join(h.Forward(t.Context(), 300*time.Millisecond), h.Close()); err != nil {
			t.Error(err)
		}
		if err := <-heard; err != nil {
			t.Error(err)
		}
		clean(t)
	})
}

// What is reinjected never gets to this host's own stack, if no rule takes it: neither a
// socket nor a reset tells of it. It is lost, and TCP recovers from that.
func TestReinjectedForNobody(t *testing.T) {
	eachFamily(t, func(t *testing.T, p *pair) {
		h, err := start(Config{Name: "test", Devices: []string{"wire"}, Flows: []Flow{{Local: p.opened.local(), Remote: p.peer.local()}}})
		if err != nil {
			t.Fatal(err)
		}
		sent := strings.Repeat("much ", 5000)
		p.peer.write(sent)
		h.awaitHeld(t, 1)
		redirected := false
		err = h.Reinject(t.Context(), 1500, func() error {
			redirected = true
			if n, _ := h.Held(); n > 0 {
				t.Errorf("%d packets were left", n)
			}
			return nil
		})
		if err != nil || !redirected {
			t.Errorf("reinjecting: %v, redirected: %v", err, redirected)
		}
		if n := p.opened.readable(); n > 0 {
			t.Errorf("%d bytes came through", n)
		}
		if err := h.Close(); err != nil {
			t.Fatal(err)
		}
		p.opened.expect(sent)
		clean(t)
	})
}

// Only the packets of certain connections can be reinjected.
func TestReinjectInvalid(t *testing.T) {
	h := Hold{config: Config{Name: "test", Flows: []Flow{{Local: netip.MustParseAddrPort("10.0.0.1:80")}}}}
	if err := h.Reinject(t.Context(), 1500, func() error { return nil }); !errors.Is(err, ErrInvalid) {
		t.Error(err)
	}
}

// A heir is the host that has the address next: it sees what comes for it.
type heir struct{ fd int }

// watch opens a packet socket in the client's network, which stands for the heir's.
func (p *pair) watch() heir {
	p.t.Helper()
	var h heir
	err := p.client(func() (err error) {
		all := uint16(unix.ETH_P_ALL)
		h.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(all<<8|all>>8))
		if err == nil {
			err = unix.SetsockoptInt(h.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20) // it sees what goes out, too
		}
		return err
	})
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { unix.Close(h.fd) })
	return h
}

// await waits for a segment with this text from another host, with a right checksum.
func (h heir) await(text string) error {
	limit := unix.Timeval{Sec: 10}
	if err := unix.SetsockoptTimeval(h.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
		return err
	}
	for {
		buf := make([]byte, 1<<16)
		var n int
		var from unix.Sockaddr
		err := again(func() (err error) {
			n, from, err = unix.Recvfrom(h.fd, buf, 0)
			return err
		})
		if err != nil {
			return fmt.Errorf("waiting for %q: %w", text, err)
		}
		p, ok := parse(buf[:n])
		if link, is := from.(*unix.SockaddrLinklayer); !ok || !is || link.Pkttype != unix.PACKET_HOST ||
			p.protocol != protocolTCP || !bytes.HasSuffix(p.bytes, []byte(text)) {
			continue
		}
		if !p.whole() || p.sum() != 0 {
			return fmt.Errorf("the checksum of %q is wrong", text)
		}
		return nil
	}
}

// bequeath has the server's host believe that the address is at the other end.
func (p *pair) bequeath() {
	p.t.Helper()
	var mac net.HardwareAddr
	err := p.client(func() error {
		wire, err := netlink.LinkByName("wire")
		if err == nil {
			mac = wire.Attrs().HardwareAddr
		}
		return err
	})
	if err == nil {
		var wire netlink.Link
		if wire, err = netlink.LinkByName("wire"); err == nil {
			err = netlink.NeighSet(&netlink.Neigh{LinkIndex: wire.Attrs().Index, IP: p.serverAddr.AsSlice(), HardwareAddr: mac, State: netlink.NUD_PERMANENT})
		}
	}
	if err != nil {
		p.t.Fatal(err)
	}
}

// Nothing that the host sends for a connection gets out while it is held.
func TestSilent(t *testing.T) {
	eachFamily(t, func(t *testing.T, p *pair) {
		h := p.hold()
		p.opened.write("too early")
		if n := p.peer.readable(); n != 0 {
			t.Errorf("%d bytes got out", n)
		}
		if err := release(t, h); err != nil {
			t.Fatal(err)
		}
		p.peer.expect("too early") // by TCP's own means
		clean(t)
	})
}

// After the sudden death of who holds, packets go nowhere, and no reset comes
// back, until the rest is removed.
func TestOutlives(t *testing.T) {
	eachFamily(t, func(t *testing.T, p *pair) {
		h := p.hold()
		h.capture.Close() // and with it the namespace, and the devices
		h.reading.Wait()
		p.peer.write("lost at first")
		// Gone without a word.
		if err := unix.SetsockoptInt(p.opened.fd, unix.SOL_TCP, unix.TCP_REPAIR, unix.TCP_REPAIR_ON); err != nil {
			t.Fatal(err)
		}
		unix.Close(p.opened.fd)
		if n := p.peer.readable(); n != 0 {
			t.Errorf("%d bytes came back", n)
		}
		if code, _ := unix.GetsockoptInt(p.peer.fd, unix.SOL_SOCKET, unix.SO_ERROR); code != 0 {
			t.Errorf("the peer was told %v", unix.Errno(code))
		}
		if names, err := Names(); err != nil || !slices.Equal(names, []string{"test"}) {
			t.Errorf("holds %q: %v", names, err)
		}
		if err := Remove("test"); err != nil {
			t.Fatal(err)
		}
		clean(t)
		if _, err := readFrom(p.peer.fd, make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("the peer of a socket that is gone reads %v", err)
		}
	})
}

// clean looks for what a hold may have left.
func clean(t *testing.T) {
	t.Helper()
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Name, "pgh") {
			t.Errorf("the device %s is left", l.Attrs().Name)
		}
	}
	tables, err := listTables()
	if err != nil {
		t.Fatal(err)
	}
	if len(tables) > 0 {
		t.Errorf("firewall tables are left: %v", tables)
	}
}

func TestInvalid(t *testing.T) {
	local, other := netip.MustParseAddrPort("10.0.0.1:80"), netip.MustParseAddrPort("[fd00::1]:80")
	for _, c := range []Config{
		{Name: "", Devices: []string{"lo"}},
		{Name: "much too long for it", Devices: []string{"lo"}},
		{Name: "none"},
		{Name: "mixed", Devices: []string{"lo"}, Flows: []Flow{{Local: local, Remote: other}}},
		{Name: "nowhere", Devices: []string{"lo"}, Flows: []Flow{{Remote: other}}},
	} {
		if _, err := start(c); !errors.Is(err, ErrInvalid) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func listTables() ([]string, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, err
	}
	tables, err := conn.ListTables()
	var names []string
	for _, t := range tables {
		names = append(names, t.Name)
	}
	return names, err
}

// start holds from now on.
func start(c Config) (*Hold, error) {
	h, err := Prepare(c)
	if err != nil {
		return nil, err
	}
	if err := h.Begin(); err != nil {
		return nil, errors.Join(err, h.Close())
	}
	return h, nil
}

// release delivers what is held, and takes the hold away.
func release(t *testing.T, h *Hold) error {
	return errors.Join(h.Deliver(t.Context()), h.Close())
}
