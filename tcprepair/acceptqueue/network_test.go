package acceptqueue

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/tcprepair/hold"
)

// A kind is what listens for what.
type kind struct {
	name     string
	domain   int // of the listener
	protocol int
	wire     int // of the packets
	local    string
}

var kinds = []kind{
	{"IPv4", unix.AF_INET, unix.IPPROTO_TCP, unix.AF_INET, "10.9.0.1"},
	{"IPv6", unix.AF_INET6, unix.IPPROTO_TCP, unix.AF_INET6, "fd09::1"},
	{"mapped", unix.AF_INET6, unix.IPPROTO_TCP, unix.AF_INET, "::"},
	{"MPTCP", unix.AF_INET, unix.IPPROTO_MPTCP, unix.AF_INET, "10.9.0.1"},
	{"MPTCP mapped", unix.AF_INET6, unix.IPPROTO_MPTCP, unix.AF_INET, "::"},
}

// A pair is two networks of their own, joined by a cable. The test's goroutine is
// in the server's.
type pair struct {
	t      *testing.T
	kind   kind
	client func(func() error) error // runs in the client's network
	port   int
}

// An end is one end of a connection, or a listener, with system calls for its methods.
type end struct {
	t  *testing.T
	fd int
}

func newPair(t *testing.T, k kind) *pair {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	t.Parallel()
	requests, answers := make(chan func() error), make(chan error)
	go func() { // on a thread that ends with it
		runtime.LockOSThread()
		for f := range requests {
			answers <- f()
		}
	}()
	t.Cleanup(func() { close(requests) })
	p := &pair{t: t, kind: k, client: func(f func() error) error {
		requests <- f
		return <-answers
	}}
	var namespace int
	err := p.client(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		namespace, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(namespace)
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	err = netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "wire"}, PeerName: "wire", PeerNamespace: netlink.NsFd(namespace)})
	up := func(addresses ...string) error {
		wire, err1 := netlink.LinkByName("wire")
		lo, err2 := netlink.LinkByName("lo")
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		if err := errors.Join(netlink.LinkSetUp(lo), netlink.LinkSetUp(wire)); err != nil {
			return err
		}
		for _, address := range addresses {
			addr, err := netlink.ParseAddr(address)
			if err != nil {
				return err
			}
			addr.Flags = unix.IFA_F_NODAD
			if err := netlink.AddrAdd(wire, addr); err != nil {
				return err
			}
		}
		return nil
	}
	err = errors.Join(err, up("10.9.0.1/24", "fd09::1/64"), p.client(func() error { return up("10.9.0.2/24", "fd09::2/64") }))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func sockaddr(domain int, host string, port int) unix.Sockaddr {
	addr := netip.MustParseAddr(host)
	if domain == unix.AF_INET {
		return &unix.SockaddrInet4{Addr: addr.As4(), Port: port}
	}
	return &unix.SockaddrInet6{Addr: addr.As16(), Port: port}
}

func socket(t *testing.T, domain, protocol int) end {
	t.Helper()
	fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		t.Fatal(err)
	}
	limit(t, fd)
	return end{t, fd}
}

// limit keeps calls on a socket from hanging.
func limit(t *testing.T, fd int) {
	t.Helper()
	second := unix.Timeval{Sec: 10}
	err := errors.Join(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &second),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &second))
	if err != nil {
		t.Fatal(err)
	}
}

// listen makes a listener, which has the port of the one before.
func (p *pair) listen(backlog int, prepare ...func(fd int) error) end {
	p.t.Helper()
	l := socket(p.t, p.kind.domain, p.kind.protocol)
	err := unix.SetsockoptInt(l.fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	for _, f := range prepare {
		err = errors.Join(err, f(l.fd))
	}
	if err := errors.Join(err, unix.Bind(l.fd, sockaddr(p.kind.domain, p.kind.local, p.port)), unix.Listen(l.fd, backlog)); err != nil {
		p.t.Fatal(err)
	}
	name, err := unix.Getsockname(l.fd)
	if err != nil {
		p.t.Fatal(err)
	}
	p.port = int(endpoint(name).Port())
	return l
}

// dial connects from the client's network to the listener.
func (p *pair) dial() end {
	p.t.Helper()
	var e end
	to := "10.9.0.1"
	if p.kind.wire == unix.AF_INET6 {
		to = "fd09::1"
	}
	err := p.client(func() error {
		e = socket(p.t, p.kind.wire, unix.IPPROTO_TCP)
		return unix.Connect(e.fd, sockaddr(p.kind.wire, to, p.port))
	})
	if err != nil {
		p.t.Fatalf("connecting: %v", err)
	}
	return e
}

func (e end) local() netip.AddrPort {
	e.t.Helper()
	name, err := unix.Getsockname(e.fd)
	if err != nil {
		e.t.Fatal(err)
	}
	return endpoint(name)
}

func (e end) accept() (accepted end, from netip.AddrPort) {
	e.t.Helper()
	for {
		fd, sa, err := unix.Accept4(e.fd, unix.SOCK_CLOEXEC)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			e.t.Fatalf("accepting: %v", err)
		}
		limit(e.t, fd)
		return end{e.t, fd}, endpoint(sa)
	}
}

func (e end) close() {
	e.t.Helper()
	if err := unix.Close(e.fd); err != nil {
		e.t.Fatal(err)
	}
}

func (e end) write(data []byte) {
	for len(data) > 0 {
		n, err := unix.Write(e.fd, data)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			e.t.Errorf("writing: %v", err)
			return
		}
		data = data[n:]
	}
}

// read reads n bytes, or up to the end.
func (e end) read(n int) []byte {
	got := make([]byte, 0, n)
	for len(got) < n {
		k, err := unix.Read(e.fd, got[len(got):n])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || k == 0 {
			e.t.Errorf("reading, after %d of %d bytes: %d, %v", len(got), n, k, err)
			break
		}
		got = got[:len(got)+k]
	}
	return got
}

func (e end) expect(what string, data []byte) {
	e.t.Helper()
	if got := e.read(len(data)); sha256.Sum256(got) != sha256.Sum256(data) {
		e.t.Errorf("%s: read something else than was written, %d bytes", what, len(got))
	}
}

func (e end) expectEnd(what string) {
	e.t.Helper()
	for {
		n, err := unix.Read(e.fd, make([]byte, 1))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if n != 0 || err != nil {
			e.t.Errorf("%s: reading the end: %d, %v", what, n, err)
		}
		return
	}
}

func (e end) stuff(seed byte) []byte {
	e.t.Helper()
	var all []byte
	for {
		some := bytes.Repeat([]byte(fmt.Sprintf("%c%06d", seed, len(all))), 512)
		n, err := unix.SendmsgN(e.fd, some, nil, nil, unix.MSG_DONTWAIT)
		if errors.Is(err, unix.EAGAIN) {
			return all
		}
		if err != nil {
			e.t.Fatal(err)
		}
		all = append(all, some[:n]...)
	}
}

// hold holds what comes to the server.
func (p *pair) hold() *hold.Hold {
	p.t.Helper()
	h, err := hold.Prepare(hold.Config{Name: "test", Devices: []string{"wire", "lo"}, Flows: []hold.Flow{
		{Local: netip.AddrPortFrom(netip.MustParseAddr("10.9.0.1"), 0)}, {Local: netip.AddrPortFrom(netip.MustParseAddr("fd09::1"), 0)},
	}})
	if err == nil {
		err = h.Begin()
	}
	if err != nil {
		p.t.Fatal(err)
	}
	return h
}

func (p *pair) release(h *hold.Hold) {
	p.t.Helper()
	if err := errors.Join(h.Deliver(p.t.Context()), h.Close()); err != nil {
		p.t.Error(err)
	}
}

func (p *pair) filler() *Filler {
	p.t.Helper()
	f, err := NewFiller()
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() {
		if err := f.Close(); err != nil {
			p.t.Error(err)
		}
	})
	return f
}

// counter is one of this network's TCP counters, of /proc/net/snmp.
func counter(t *testing.T, name string) int {
	t.Helper()
	text, err := os.ReadFile("/proc/thread-self/net/snmp")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if fields[0] != "Tcp:" {
			continue
		}
		if names == nil {
			names = fields
			continue
		}
		for i := range names {
			if names[i] == name {
				n, err := strconv.Atoi(fields[i])
				if err != nil {
					t.Fatal(err)
				}
				return n
			}
		}
	}
	t.Fatalf("there is no counter %s", name)
	return 0
}

// noResets makes sure that this host has sent none, not even one that was dropped.
func (p *pair) noResets() {
	p.t.Helper()
	if n := counter(p.t, "OutRsts"); n != 0 {
		p.t.Errorf("%d resets were sent", n)
	}
}

// eventually waits until something is so.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for begun := time.Now(); !ok(); <-time.After(time.Millisecond) {
		if time.Since(begun) > 10*time.Second {
			t.Fatalf("%s: not within %v", what, time.Since(begun))
		}
	}
}

// arrived waits until nothing is on its way to the server any more.
func (p *pair) arrived() {
	p.t.Helper()
	before, same := -1, 0
	eventually(p.t, "nothing comes any more", func() bool {
		now := counter(p.t, "InSegs")
		if now != before {
			before, same = now, 0
		}
		same++
		return same > 20
	})
}
