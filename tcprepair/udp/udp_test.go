package udp

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/tcprepair/inet"
	"github.com/pagurus-project/pagurus/tcprepair/inet/inettest"
)

// enterNetwork gives the test's goroutine a network of its own with these addresses. The
// thread ends with it.
func enterNetwork(t *testing.T, addresses ...string) {
	t.Helper()
	inettest.EnterNetwork(t)
	inettest.AddPair(t, "eth0", "eth1")
	addAddresses(t, addresses...)
}

// addAddresses gives those of IPv6 to the loopback device: it is ready for them at once.
func addAddresses(t *testing.T, addresses ...string) {
	t.Helper()
	lo, eth0 := must(netlink.LinkByName("lo")), must(netlink.LinkByName("eth0"))
	for _, a := range addresses {
		address, link := must(netlink.ParseAddr(a)), eth0
		if address.IP.To4() == nil {
			link, address.Flags = lo, unix.IFA_F_NODAD
		}
		check(t, netlink.AddrAdd(link, address))
		for deadline := time.Now().Add(5 * time.Second); ; <-time.After(time.Millisecond) {
			// That of IPv6 comes later (addrconf_dad_work, net/ipv6/addrconf.c).
			routes, err := netlink.RouteGet(address.IP)
			if err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("no route to %v: %v", address, err)
			}
		}
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func open(t *testing.T, ipv6 bool, at string) int {
	t.Helper()
	domain := unix.AF_INET
	if ipv6 {
		domain = unix.AF_INET6
	}
	fd := must(unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0))
	t.Cleanup(func() { unix.Close(fd) })
	if at != "" {
		check(t, unix.Bind(fd, must(inet.Sockaddr(netip.MustParseAddrPort(at), ipv6))))
	}
	return fd
}

// moved puts a socket together anew, after the old one is gone.
func moved(t *testing.T, fd int) (int, *Socket) {
	t.Helper()
	s := must(Look(fd))
	s.Queue = must(Queue(fd))
	return again(t, fd, s), s
}

// again makes the socket anew in place of the old one.
func again(t *testing.T, fd int, s *Socket) int {
	t.Helper()
	nothing := must(unix.Open(os.DevNull, unix.O_RDONLY, 0))
	check(t, unix.Dup2(nothing, fd))
	unix.Close(nothing)
	anew := must(Restore(s, false))
	t.Cleanup(func() { unix.Close(anew) })
	return anew
}

func mustLookAlike(t *testing.T, was *Socket, fd int) {
	t.Helper()
	is := must(Look(fd))
	for _, s := range []*Socket{was, is} { // each datagram that comes sets it
		s.Options = slices.DeleteFunc(s.Options, func(o inet.Option) bool { return o.Level == unix.SOL_SOCKET && o.Name == unix.SO_INCOMING_CPU })
	}
	if diff := cmp.Diff(was, is, cmpopts.IgnoreFields(Socket{}, "Queue"), cmpopts.EquateEmpty(),
		cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }), cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
		cmpopts.IgnoreUnexported(inet.Option{})); diff != "" {
		t.Errorf("the socket (-before +after):\n%s", diff)
	}
}

// TestOptions: every option that a program can set arrives.
func TestOptions(t *testing.T) {
	fixed := []string{
		"SO_RESERVE_MEM", "SO_LOCK_FILTER", // without a filter; below
		"SO_SELECT_ERR_QUEUE", "IPV6_V6ONLY", // of a bound one
	}
	for name, at := range map[string]string{"IPv4": "127.0.0.1:7000", "IPv6": "[::1]:7000"} {
		t.Run(name, func(t *testing.T) {
			enterNetwork(t)
			fd := open(t, name == "IPv6", at)
			for _, o := range must(inet.UDP.Read(fd, name == "IPv6")) {
				k := inet.UDP.Kind(o.Level, o.Name)
				if !slices.Contains(fixed, k.Label) && !must(inettest.Change(k, fd)) {
					t.Errorf("%s of %v cannot be changed", k.Label, o.Value)
				}
			}
			// ld #0; ret #-1
			check(t, inet.Filter{uint64(unix.BPF_LD | unix.BPF_IMM), uint64(unix.BPF_RET|unix.BPF_K) | 0xffffffff<<32}.Attach(fd))
			check(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_LOCK_FILTER, 1))
			check(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 50000))
			anew, was := moved(t, fd)
			mustLookAlike(t, was, anew)
		})
	}
}

// TestQueue: what has come and was not read is read at the destination, in order, with its
// senders, and was not taken away from the source.
func TestQueue(t *testing.T) {
	for name, c := range map[string]struct {
		ipv6             bool
		at, to, from     string
		connected, short bool
	}{
		"IPv4":           {false, "10.9.0.1:7000", "10.9.0.1:7000", "10.9.0.2:7001", false, false},
		"IPv4 everybody": {false, "0.0.0.0:7000", "10.9.0.1:7000", "10.9.0.2:7001", false, false},
		"IPv4 connected": {false, "10.9.0.1:7000", "10.9.0.1:7000", "10.9.0.2:7001", true, false},
		"IPv6":           {true, "[fd09::1]:7000", "[fd09::1]:7000", "[fd09::2]:7001", false, false},
		"IPv6 connected": {true, "[fd09::1]:7000", "[fd09::1]:7000", "[fd09::2]:7001", true, false},
		"IPv4 in IPv6":   {true, "[::]:7000", "10.9.0.1:7000", "10.9.0.2:7001", false, false},
		"IPv6 everybody": {true, "[::]:7000", "[fd09::1]:7000", "[fd09::2]:7001", false, false},
	} {
		t.Run(name, func(t *testing.T) {
			enterNetwork(t, "10.9.0.1/24", "10.9.0.2/24", "fd09::1/64", "fd09::2/64")
			fd := open(t, c.ipv6, c.at)
			to, from := netip.MustParseAddrPort(c.to), netip.MustParseAddrPort(c.from)
			peer := open(t, from.Addr().Is6(), c.from)
			if c.connected {
				check(t, unix.Connect(fd, must(inet.Sockaddr(from, c.ipv6))))
			}
			check(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1<<20))
			var sent [][]byte
			for _, n := range []int{1, 0, 1000, 0, 1400, 60000, 3} {
				data := bytes.Repeat([]byte{byte(n)}, n)
				sent = append(sent, data)
				check(t, unix.Sendto(peer, data, 0, must(inet.Sockaddr(to, to.Addr().Is6()))))
			}
			s := must(Look(fd))
			s.Queue = must(Queue(fd))
			mustRead(t, fd, from, sent)
			for i := range s.Queue {
				if d := &s.Queue[i]; d.To != to || d.From != from || d.Hops != 64 {
					t.Errorf("datagram %d from %v to %v, %d hops", i, d.From, d.To, d.Hops)
				}
			}
			anew := again(t, fd, s)
			check(t, Deliver(s.Queue))
			mustRead(t, anew, from, sent)
			mustLookAlike(t, s, anew)
		})
	}
}

func mustRead(t *testing.T, fd int, from netip.AddrPort, sent [][]byte) {
	t.Helper()
	buf := make([]byte, 1<<16)
	for i, want := range sent {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(poll, 5000); err != nil { // the kernel may take its time
			t.Fatal(err)
		}
		n, sa, err := unix.Recvfrom(fd, buf, unix.MSG_DONTWAIT)
		check(t, err)
		if got := must(inet.Endpoint(sa)); got.Addr().Unmap() != from.Addr() || got.Port() != from.Port() || !bytes.Equal(buf[:n], want) {
			t.Fatalf("datagram %d: %d bytes from %v instead of %d from %v", i, n, got, len(want), from)
		}
	}
	if n, _, err := unix.Recvfrom(fd, buf, unix.MSG_DONTWAIT); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("%d bytes more, %v", n, err)
	}
}

// TestEarly: a socket can be put together before its address is there, and works when it is.
func TestEarly(t *testing.T) {
	for name, at := range map[string][2]string{"IPv4": {"10.9.0.1:7000", "10.9.0.2:7001"}, "IPv6": {"[fd09::1]:7000", "[fd09::2]:7001"}} {
		for _, connected := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				enterNetwork(t, "10.9.0.2/24", "fd09::2/64")
				s := &Socket{IPv6: name == "IPv6", Local: netip.MustParseAddrPort(at[0]), Buffers: inet.Buffers{Send: 1 << 17, Receive: 1 << 17}}
				from := netip.MustParseAddrPort(at[1])
				if connected {
					s.Remote = from
				}
				if err := CanBind(s, false); !errors.Is(err, unix.EADDRNOTAVAIL) {
					t.Errorf("binding to an address that is not there: %v", err)
				}
				check(t, CanBind(s, true))
				fd := must(Restore(s, true))
				t.Cleanup(func() { unix.Close(fd) })
				addAddresses(t, "10.9.0.1/24", "fd09::1/64")
				if err := CanBind(s, false); !errors.Is(err, unix.EADDRINUSE) {
					t.Errorf("binding to a port that is in use: %v", err)
				}
				peer := open(t, s.IPv6, at[1])
				check(t, unix.Sendto(peer, []byte("question"), 0, must(inet.Sockaddr(s.Local, s.IPv6))))
				mustRead(t, fd, from, [][]byte{[]byte("question")})
				check(t, unix.Sendto(fd, []byte("answer"), 0, must(inet.Sockaddr(from, s.IPv6))))
				mustRead(t, peer, s.Local, [][]byte{[]byte("answer")})
			})
		}
	}
}

// TestGroups: memberships arrive, with their sources and devices.
func TestGroups(t *testing.T) {
	for _, ipv6 := range []bool{false, true} {
		t.Run(map[bool]string{false: "IPv4", true: "IPv6"}[ipv6], func(t *testing.T) {
			enterNetwork(t, "10.9.0.1/24", "fd09::1/64")
			fd := open(t, ipv6, map[bool]string{false: "0.0.0.0:7000", true: "[::]:7000"}[ipv6])
			groups := []inet.Membership{
				{Group: netip.MustParseAddr("239.1.2.3"), Device: "eth0"},
				{Group: netip.MustParseAddr("239.1.2.4"), Device: "eth0", Only: true, Sources: []netip.Addr{netip.MustParseAddr("10.9.0.7")}},
				{Group: netip.MustParseAddr("239.1.2.5"), Device: "eth0", Sources: []netip.Addr{netip.MustParseAddr("10.9.0.8"), netip.MustParseAddr("10.9.0.9")}},
			}
			if ipv6 {
				groups = append(groups,
					inet.Membership{Group: netip.MustParseAddr("ff05::77"), Device: "eth0"},
					inet.Membership{Group: netip.MustParseAddr("ff05::78"), Device: "eth0", Only: true, Sources: []netip.Addr{netip.MustParseAddr("fd09::7")}})
			}
			others := open(t, ipv6, "")
			check(t, (&inet.Membership{Group: netip.MustParseAddr("239.9.9.9"), Device: "eth0"}).Join(others)) // is not ours
			for i := range groups {
				check(t, groups[i].Join(fd))
			}
			check(t, inet.Devices{Any: "eth0", Groups: "eth0"}.Set(fd, ipv6))
			anew, was := moved(t, fd)
			if len(was.Memberships) != len(groups) || was.Devices != (inet.Devices{Any: "eth0", Groups: "eth0"}) {
				t.Errorf("%d memberships, devices %q: %v", len(was.Memberships), was.Devices, was.Memberships)
			}
			mustLookAlike(t, was, anew)
		})
	}
}

// TestShutdown: the end of what was shut down is the end there, too.
func TestShutdown(t *testing.T) {
	for how, want := range map[int]inet.Shutdown{unix.SHUT_RD: inet.ShutReceive, unix.SHUT_RDWR: inet.ShutReceive | inet.ShutSend} {
		for _, connected := range []bool{true, false} {
			t.Run("", func(t *testing.T) {
				enterNetwork(t)
				fd := open(t, false, "127.0.0.1:7000")
				if connected {
					check(t, unix.Connect(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: 7001}))
				}
				if err := unix.Shutdown(fd, how); connected && err != nil || !connected && !errors.Is(err, unix.ENOTCONN) {
					t.Fatal(err)
				}
				anew, was := moved(t, fd)
				if was.Shutdown != want {
					t.Errorf("shut down: %d instead of %d", was.Shutdown, want)
				}
				mustLookAlike(t, was, anew)
			})
		}
	}
}

// TestGarbage: what no kernel has told is refused, and harms nobody.
func TestGarbage(t *testing.T) {
	for _, s := range []Socket{
		{Local: netip.MustParseAddrPort("[::1]:1")},
		{Remote: netip.MustParseAddrPort("127.0.0.1:1")},
		{Options: []inet.Option{{Level: 1, Name: 999}}},
		{Memberships: []inet.Membership{{Group: netip.MustParseAddr("10.0.0.1")}}},
		{Memberships: []inet.Membership{{Group: netip.MustParseAddr("239.0.0.1"), Sources: []netip.Addr{netip.MustParseAddr("::1")}}}},
		{Queue: []Datagram{{}}},
		{Queue: []Datagram{{From: netip.MustParseAddrPort("[::1]:1"), To: netip.MustParseAddrPort("127.0.0.1:1")}}},
		{Queue: []Datagram{{From: netip.MustParseAddrPort("127.0.0.1:1"), To: netip.MustParseAddrPort("127.0.0.1:1"), Data: make([]byte, 1<<16)}}},
	} {
		if fd, err := Restore(&s, false); !errors.Is(err, ErrInvalid) {
			t.Errorf("%+v: descriptor %d, %v", s, fd, err)
		}
	}
	for n := range 40 {
		_ = inet.ParseSockaddr(make([]byte, n))
		_, _ = datagrams(&unix.SockaddrInet4{}, nil, bytes.Repeat([]byte{1}, n))
	}
}
