package raw

import (
	"errors"
	"net/netip"
	"os"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/tcprepair/inet"
	"github.com/pagurus-project/pagurus/tcprepair/inet/inettest"
)

// enterNetwork gives the test's goroutine a network of its own, in which everybody may ping.
// The thread ends with it.
func enterNetwork(t *testing.T) {
	t.Helper()
	inettest.EnterNetwork(t)
	check(t, os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 1000"), 0))
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

// kinds are sockets of all sorts.
var kinds = map[string]Socket{
	"ICMP":      {Protocol: unix.IPPROTO_ICMP},
	"UDP":       {Protocol: unix.IPPROTO_UDP},
	"any":       {Protocol: unix.IPPROTO_RAW},
	"ping":      {Protocol: unix.IPPROTO_ICMP, Ping: true},
	"ICMPv6":    {Protocol: unix.IPPROTO_ICMPV6, IPv6: true},
	"OSPF IPv6": {Protocol: 89, IPv6: true},
	"any IPv6":  {Protocol: unix.IPPROTO_RAW, IPv6: true},
	"ping IPv6": {Protocol: unix.IPPROTO_ICMPV6, IPv6: true, Ping: true},
}

func (s *Socket) new(t *testing.T) int {
	t.Helper()
	fd := must(s.socket())
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// again makes the socket anew in place of the old one.
func again(t *testing.T, fd int, s *Socket) int {
	t.Helper()
	nothing := must(unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0))
	check(t, unix.Dup2(nothing, fd))
	unix.Close(nothing)
	anew := must(Restore(s, false))
	t.Cleanup(func() { unix.Close(anew) })
	return anew
}

func mustLookAlike(t *testing.T, was *Socket, fd int) {
	t.Helper()
	if diff := cmp.Diff(was, must(Look(fd)), cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{}), cmpopts.IgnoreUnexported(inet.Option{})); diff != "" {
		t.Errorf("the socket (-before +after):\n%s", diff)
	}
}

// TestOptions: every option that a program can set arrives.
func TestOptions(t *testing.T) {
	for name, kind := range kinds {
		t.Run(name, func(t *testing.T) {
			enterNetwork(t)
			fd := kind.new(t)
			fixed := []string{"SO_RESERVE_MEM", "SO_LOCK_FILTER"} // without a filter; below
			// What all sockets tell and not all can have.
			without := []string{"SO_REUSEPORT", "SO_ZEROCOPY", "IPV6_V6ONLY", "IP_HDRINCL", "IP_NODEFRAG"}
			changed := map[string]bool{}
			for _, o := range must(inet.Raw.Read(fd, kind.IPv6)) {
				k := inet.Raw.Kind(o.Level, o.Name)
				if slices.Contains(fixed, k.Label) {
					continue
				}
				if changed[k.Label] = must(inettest.Change(k, fd)); !changed[k.Label] && !slices.Contains(without, k.Label) {
					t.Errorf("%s of %v cannot be changed", k.Label, o.Value)
				}
			}
			for label, has := range map[string]bool{
				"IP_TTL": !kind.IPv6, "IP_MULTICAST_TTL": !kind.IPv6, "IP_NODEFRAG": !kind.Ping && !kind.IPv6, "SO_MARK": true, "SO_BINDTODEVICE": true, "IPV6_UNICAST_HOPS": kind.IPv6,
				"IP_HDRINCL": !kind.Ping && !kind.IPv6, "IPV6_HDRINCL": !kind.Ping && kind.IPv6,
				"ICMP_FILTER":   !kind.Ping && kind.Protocol == unix.IPPROTO_ICMP,
				"ICMPV6_FILTER": !kind.Ping && kind.Protocol == unix.IPPROTO_ICMPV6, "IPV6_CHECKSUM": !kind.Ping && kind.IPv6,
			} {
				if has && !changed[label] {
					t.Errorf("%s could not be changed", label)
				}
			}
			check(t, inet.Filter{unix.BPF_LD | unix.BPF_IMM, unix.BPF_RET | unix.BPF_K | 0xffffffff<<32}.Attach(fd))
			check(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_LOCK_FILTER, 1))
			check(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 50000))
			if kind.IPv6 {
				check(t, inet.Set(fd, unix.SOL_IPV6, unix.IPV6_DSTOPTS, []byte{0, 0, 1, 4, 0, 0, 0, 0}))
			} else {
				check(t, inet.Set(fd, unix.SOL_IP, unix.IP_OPTIONS, append([]byte{7, 39, 4}, make([]byte, 37)...))) // record the route
			}
			was := must(Look(fd))
			if len(was.Headers) != 1 || len(was.Filter) != 2 {
				t.Errorf("headers %v, filter %v", was.Headers, was.Filter)
			}
			mustLookAlike(t, was, again(t, fd, was))
		})
	}
}

// TestAddresses: what a socket is bound to and connected to arrives, also if the kernel does
// not tell the latter; and what it takes is what it took.
func TestAddresses(t *testing.T) {
	for name, kind := range kinds {
		for _, how := range []string{"new", "bound", "connected", "connected with a port", "shut down"} {
			t.Run(name+"/"+how, func(t *testing.T) {
				enterNetwork(t)
				fd := kind.new(t)
				own := netip.MustParseAddr(map[bool]string{false: "127.0.0.1", true: "::1"}[kind.IPv6])
				want := kind
				port := uint16(0)
				if kind.Ping {
					port = 77
				}
				sockaddr := func(port uint16) unix.Sockaddr {
					return must(inet.Sockaddr(netip.AddrPortFrom(own, port), kind.IPv6))
				}
				if how != "new" {
					check(t, unix.Bind(fd, sockaddr(port)))
					want.Local = netip.AddrPortFrom(own, port)
				}
				switch how {
				case "connected":
					check(t, unix.Connect(fd, sockaddr(0)))
					want.Remote = netip.AddrPortFrom(own, 0)
				case "connected with a port":
					check(t, unix.Connect(fd, sockaddr(9)))
					want.Remote = netip.AddrPortFrom(own, 9)
				case "shut down":
					check(t, unix.Connect(fd, sockaddr(0)))
					want.Remote = netip.AddrPortFrom(own, 0)
					check(t, unix.Shutdown(fd, unix.SHUT_RD))
					want.Shutdown = inet.ShutReceive
				}
				was := must(Look(fd))
				got := *was
				got.Buffers, got.Options = inet.Buffers{}, nil
				if diff := cmp.Diff(want, got, cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{})); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
				mustLookAlike(t, was, again(t, fd, was))
			})
		}
	}
}

// echo sends one from a socket of ICMP to this host.
func echo(t *testing.T, fd int) {
	t.Helper()
	check(t, unix.Sendto(fd, []byte{8, 0, 0xf7, 0xfe, 0, 1, 0, 0}, 0, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
}

// TestUnread: what was not read is told; another socket has none of it, nor what came while it
// was made.
func TestUnread(t *testing.T) {
	for _, name := range []string{"ICMP", "ping"} {
		t.Run(name, func(t *testing.T) {
			enterNetwork(t)
			kind := kinds[name]
			fd := kind.new(t)
			if n := must(inet.Unread(fd)); n != 0 {
				t.Errorf("%d bytes in a new one", n)
			}
			echo(t, fd)
			poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			if n, err := unix.Poll(poll, 5000); n != 1 || err != nil {
				t.Fatalf("no answer: %v", err)
			}
			if n := must(inet.Unread(fd)); n == 0 {
				t.Error("an answer is not told")
			}
			anew := again(t, fd, must(Look(fd)))
			if n := must(inet.Unread(anew)); n != 0 {
				t.Errorf("%d bytes in the new one", n)
			}
			echo(t, anew)
			poll[0].Fd = int32(anew)
			if n, err := unix.Poll(poll, 5000); n != 1 || err != nil {
				t.Errorf("the new one gets no answer: %v", err)
			}
		})
	}
}

// TestEarly: a socket can be put together before its address is there.
func TestEarly(t *testing.T) {
	for name, kind := range kinds {
		t.Run(name, func(t *testing.T) {
			enterNetwork(t)
			kind.Local = netip.AddrPortFrom(netip.MustParseAddr(map[bool]string{false: "10.9.0.1", true: "fd09::1"}[kind.IPv6]), 0)
			kind.Buffers = inet.Buffers{Send: 1 << 17, Receive: 1 << 17}
			if err := CanBind(&kind, false); !errors.Is(err, unix.EADDRNOTAVAIL) {
				t.Errorf("binding to an address that is not there: %v", err)
			}
			check(t, CanBind(&kind, true))
			fd := must(Restore(&kind, true))
			t.Cleanup(func() { unix.Close(fd) })
			if got := must(Look(fd)); got.Local.Addr() != kind.Local.Addr() {
				t.Errorf("it is at %v", got.Local)
			}
		})
	}
}

// TestTaken: two sockets of ping do not share an identifier.
func TestTaken(t *testing.T) {
	enterNetwork(t)
	kind := kinds["ping"]
	kind.Local = netip.MustParseAddrPort("127.0.0.1:77")
	check(t, unix.Bind(kind.new(t), &unix.SockaddrInet4{Port: 77, Addr: [4]byte{127, 0, 0, 1}}))
	if err := CanBind(&kind, false); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("binding to an identifier that is in use: %v", err)
	}
	kind.Local = netip.AddrPort{}
	check(t, os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("1 0"), 0))
	if err := CanBind(&kind, false); !errors.Is(err, unix.EACCES) {
		t.Errorf("where nobody may ping: %v", err)
	}
}

// TestGroups: memberships and devices arrive.
func TestGroups(t *testing.T) {
	for _, name := range []string{"ICMP", "any", "ICMPv6", "ping"} {
		t.Run(name, func(t *testing.T) {
			enterNetwork(t)
			check(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "eth1"}))
			link := must(netlink.LinkByName("eth0"))
			check(t, netlink.LinkSetUp(link))
			check(t, netlink.AddrAdd(link, must(netlink.ParseAddr("10.9.0.1/24"))))
			kind := kinds[name]
			fd := kind.new(t)
			groups := []inet.Membership{{Group: netip.MustParseAddr("239.1.2.3"), Device: "eth0"}}
			if kind.IPv6 {
				groups = []inet.Membership{
					{Group: netip.MustParseAddr("ff05::77"), Device: "eth0"},
					{Group: netip.MustParseAddr("ff05::78"), Device: "eth0", Only: true, Sources: []netip.Addr{netip.MustParseAddr("fd09::7")}},
				}
			}
			for i := range groups {
				check(t, groups[i].Join(fd))
			}
			check(t, inet.Devices{Any: "eth0", Groups: "eth0"}.Set(fd, kind.IPv6))
			was := must(Look(fd))
			if len(was.Memberships) != len(groups) || was.Devices != (inet.Devices{Any: "eth0", Groups: "eth0"}) {
				t.Errorf("memberships %v, devices %v", was.Memberships, was.Devices)
			}
			mustLookAlike(t, was, again(t, fd, was))
		})
	}
}

// TestRefused: what cannot be read is named, and so is a socket that routes multicast.
func TestRefused(t *testing.T) {
	enterNetwork(t)
	igmp := Socket{Protocol: unix.IPPROTO_IGMP}
	fd := igmp.new(t)
	if _, err := Look(fd); err != nil {
		t.Errorf("of IGMP: %v", err)
	}
	const mrtInit = 200
	check(t, unix.SetsockoptInt(fd, unix.SOL_IP, mrtInit, 1))
	if _, err := Look(fd); !errors.Is(err, inet.ErrUnsupported) {
		t.Errorf("routing multicast: %v", err)
	}
}

// TestGarbage: what no kernel has told is refused, and harms nobody.
func TestGarbage(t *testing.T) {
	for _, s := range []Socket{
		{Protocol: -1},
		{Protocol: 256},
		{Protocol: unix.IPPROTO_UDP, Ping: true},
		{Protocol: 1, Local: netip.MustParseAddrPort("[::1]:1")},
		{Protocol: 1, Remote: netip.MustParseAddrPort("127.0.0.1:1")},
		{Protocol: 1, Options: []inet.Option{{Level: 1, Name: 999}}},
		{Protocol: 1, Headers: []inet.Option{{Level: unix.SOL_IP, Name: unix.IP_TTL}}},
		{Protocol: 1, Headers: []inet.Option{{Level: unix.SOL_IP, Name: unix.IP_OPTIONS, Value: make([]byte, maxHeaders+1)}}},
		{Protocol: 1, Filter: make(inet.Filter, unix.BPF_MAXINSNS+1)},
		{Protocol: 1, Memberships: []inet.Membership{{Group: netip.MustParseAddr("10.0.0.1")}}},
	} {
		if fd, err := Restore(&s, false); !errors.Is(err, ErrInvalid) {
			t.Errorf("%+v: descriptor %d, %v", s, fd, err)
		}
	}
}

func FuzzParseList(f *testing.F) {
	f.Add("head\n 193: 0100007F:0001 0100007F:0000 01 00000000:00000000 00:00000000 00000000     0        0 9407700 2 0000 0\n")
	f.Add("head\n 1: 00000000000000000000000001000000:003A 00000000000000000000000001000000:0000 01 0:0 0:0 0 0 0 9407701 2 0 0\n")
	f.Fuzz(func(_ *testing.T, content string) { _, _ = parseList(content) })
}
