package forward

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A lab is hosts at a switch, each a network namespace, and which version of IP they speak.
type lab struct {
	t                            *testing.T
	ipv6                         bool
	network                      *host // the switch
	home, b, c, client, stranger *host
}

// A host is a thread in a network namespace, which ends with the test.
type host struct {
	t         *testing.T
	name      string
	number    byte
	namespace int
	requests  chan func()
}

func newHost(t *testing.T, name string, number byte) *host {
	t.Helper()
	h := &host{t: t, name: name, number: number, requests: make(chan func())}
	go func() {
		runtime.LockOSThread()
		for f := range h.requests {
			f()
		}
	}()
	t.Cleanup(func() { close(h.requests) })
	h.do(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		h.namespace = fd
		return err
	})
	t.Cleanup(func() { unix.Close(h.namespace) })
	return h
}

// run calls f on the host.
func (h *host) run(f func() error) error {
	done := make(chan error)
	h.requests <- func() { done <- f() }
	return <-done
}

func (h *host) do(f func() error) {
	h.t.Helper()
	if err := h.run(f); err != nil {
		h.t.Fatalf("%s: %v", h.name, err)
	}
}

func newLab(t *testing.T, ipv6 bool) *lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	l := &lab{t: t, ipv6: ipv6, network: newHost(t, "switch", 0)}
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "bridge"}}
	l.network.do(func() error { return errors.Join(netlink.LinkAdd(bridge), netlink.LinkSetUp(bridge)) })
	for i, h := range []**host{&l.home, &l.b, &l.c, &l.client, &l.stranger} {
		name := []string{"home", "b", "c", "client", "stranger"}[i]
		*h = newHost(t, name, byte(i+1))
		l.network.do(func() error {
			port := &netlink.Veth{
				LinkAttrs: netlink.LinkAttrs{Name: name, MasterIndex: bridge.Index},
				PeerName:  "eth0", PeerNamespace: netlink.NsFd((*h).namespace),
			}
			return errors.Join(netlink.LinkAdd(port), netlink.LinkSetUp(port))
		})
		(*h).do((*h).up)
	}
	return l
}

func (h *host) address(ipv6 bool) netip.Addr {
	if ipv6 {
		return netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x77, 15: h.number})
	}
	return netip.AddrFrom4([4]byte{10, 77, 0, h.number})
}

func (h *host) up() error {
	// Neighbours are asked for from the link-local address, which is to be there at once.
	errs := []error{os.WriteFile("/proc/sys/net/ipv6/conf/eth0/accept_dad", []byte("0"), 0)}
	for _, name := range []string{"lo", "eth0"} {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		errs = append(errs, netlink.LinkSetUp(link))
		for _, bits := range []int{24, 64} {
			if name == "eth0" {
				addr, err := netlink.ParseAddr(netip.PrefixFrom(h.address(bits == 64), bits).String())
				if err != nil {
					return err
				}
				addr.Flags = unix.IFA_F_NODAD
				errs = append(errs, netlink.AddrAdd(link, addr))
			}
		}
	}
	return errors.Join(errs...)
}

func eachFamily(t *testing.T, f func(*testing.T, *lab)) {
	for name, ipv6 := range map[string]bool{"IPv4": false, "IPv6": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f(t, newLab(t, ipv6))
		})
	}
}

// An end is a socket of TCP. Its calls do not wait for ever.
type end struct {
	t  *testing.T
	fd int
}

func (l *lab) sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}

func (l *lab) socket() (int, error) {
	domain := unix.AF_INET
	if l.ipv6 {
		domain = unix.AF_INET6
	}
	return unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
}

func (l *lab) end(fd int) end {
	l.t.Helper()
	limit := unix.Timeval{Sec: 10}
	err := errors.Join(
		unix.SetNonblock(fd, false),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit))
	if err != nil {
		l.t.Fatal(err)
	}
	return end{l.t, fd}
}

// listen makes a listener at the host's own address.
func (l *lab) listen(h *host, port uint16) end {
	l.t.Helper()
	var fd int
	h.do(func() (err error) {
		if fd, err = l.socket(); err != nil {
			return err
		}
		l.t.Cleanup(func() { unix.Close(fd) })
		return errors.Join(unix.Bind(fd, l.sockaddr(netip.AddrPortFrom(h.address(l.ipv6), port))), unix.Listen(fd, 100))
	})
	return l.end(fd)
}

// connect makes a connection from a host to a listener, and returns its flow.
func (l *lab) connect(from *host, listener end) (client, server end, flow Flow) {
	l.t.Helper()
	var fd int
	from.do(func() (err error) {
		if fd, err = l.socket(); err != nil {
			return err
		}
		return unix.Connect(fd, l.sockaddr(listener.local()))
	})
	client = l.end(fd)
	accepted := -1
	err := again(func() (err error) { accepted, _, err = unix.Accept(listener.fd); return err })
	if err != nil {
		l.t.Fatal(err)
	}
	server = l.end(accepted)
	return client, server, Flow{Local: listener.local(), Remote: client.local()}
}

func (e end) local() netip.AddrPort {
	e.t.Helper()
	sa, err := unix.Getsockname(e.fd)
	if err != nil {
		e.t.Fatal(err)
	}
	if sa, ok := sa.(*unix.SockaddrInet4); ok {
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	}
	six := sa.(*unix.SockaddrInet6)
	return netip.AddrPortFrom(netip.AddrFrom16(six.Addr), uint16(six.Port))
}

func again(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func (e end) Read(p []byte) (n int, err error) {
	err = again(func() error { n, err = unix.Read(e.fd, p); return err })
	if err == nil && n == 0 {
		err = io.EOF
	}
	return max(n, 0), err
}

func (e end) Write(p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		k := 0
		err = again(func() error { k, err = unix.SendmsgN(e.fd, p[n:], nil, nil, unix.MSG_NOSIGNAL); return err })
		n += max(k, 0)
	}
	return n, err
}

// say has one end write and the other read.
func say(from, to end, text string) error {
	if _, err := from.Write([]byte(text)); err != nil {
		return fmt.Errorf("writing: %w", err)
	}
	return to.expect(text)
}

func (e end) expect(text string) error {
	got := make([]byte, len(text))
	if n, err := io.ReadFull(e, got); err != nil {
		return fmt.Errorf("reading, after %d of %d bytes: %w", n, len(text), err)
	}
	if string(got) != text {
		return errors.New("read something else than was written")
	}
	return nil
}

// talk is a word in each direction.
func (l *lab) talk(what string, a, b end) {
	l.t.Helper()
	if err := errors.Join(say(a, b, "ask "+what), say(b, a, "answer "+what)); err != nil {
		l.t.Fatalf("%s: %v", what, err)
	}
}

// count reads a counter of the host's kernel (/proc/net/snmp, netstat), as "Tcp: OutRsts".
func (h *host) count(protocol, name string) (n int) {
	h.t.Helper()
	h.do(func() error {
		for _, file := range []string{"snmp", "netstat"} {
			text, err := os.ReadFile("/proc/thread-self/net/" + file)
			if err != nil {
				return err
			}
			var names []string
			for line := range strings.Lines(string(text)) {
				fields := strings.Fields(line)
				if fields[0] != protocol+":" {
					continue
				}
				if names == nil {
					names = fields
					continue
				}
				for i := range names {
					if names[i] == name {
						n, err = strconv.Atoi(fields[i])
						return err
					}
				}
			}
		}
		return fmt.Errorf("there is no %s: %s", protocol, name)
	})
	return n
}

// eventually waits for something to be so.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for begun := time.Now(); !f(); {
		if time.Since(begun) > 10*time.Second {
			t.Fatalf("%s is never so", what)
		}
		<-time.After(time.Millisecond)
	}
}

// clean looks at each host for what may be left.
func (l *lab) clean() {
	l.t.Helper()
	for _, h := range []*host{l.home, l.b, l.c, l.client, l.stranger} {
		h.do(func() error {
			conn, err := nftables.New()
			if err != nil {
				return err
			}
			tables, err := conn.ListTables()
			for _, t := range tables {
				l.t.Errorf("%s: the firewall's table %s is left", h.name, t.Name)
			}
			rules, err1 := netlink.RuleList(netlink.FAMILY_ALL)
			for _, r := range rules {
				if r.Table == RoutingTable || r.Priority == RulePriority {
					l.t.Errorf("%s: the rule %v is left", h.name, r)
				}
			}
			routes, err2 := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: RoutingTable}, netlink.RT_FILTER_TABLE)
			for _, r := range routes {
				l.t.Errorf("%s: the route %v is left", h.name, r)
			}
			forwards, err3 := List()
			guests, err4 := Guests()
			if len(forwards) > 0 || len(guests) > 0 {
				l.t.Errorf("%s: %v and %v are left", h.name, forwards, guests)
			}
			return errors.Join(err, err1, err2, err3, err4)
		})
	}
}

func pattern(n int, seed byte) []byte {
	return bytes.Repeat([]byte{seed, 1, 2, 3, 5, 7, 11}, n/7+1)[:n]
}
