package forward

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/tcprepair/inet"
)

// acknowledgement is a packet of a connection that is not: whoever has the address answers
// it with a reset.
func acknowledgement(f Flow) []byte {
	tcp := make([]byte, 20)
	binary.BigEndian.PutUint16(tcp, f.Remote.Port())
	binary.BigEndian.PutUint16(tcp[2:], f.Local.Port())
	tcp[12], tcp[13] = 5<<4, 1<<4
	from, to := f.Remote.Addr().AsSlice(), f.Local.Addr().AsSlice()
	binary.BigEndian.PutUint16(tcp[16:], inet.Checksum(from, to, []byte{0, unix.IPPROTO_TCP, 0, 20}, tcp))
	var ip []byte
	if f.Local.Addr().Is4() {
		ip = make([]byte, 12) // the rest is filled in (raw(7))
		ip[0], ip[8], ip[9] = 4<<4|5, 64, unix.IPPROTO_TCP
		binary.BigEndian.PutUint16(ip[2:], 40)
	} else {
		ip = make([]byte, 8)
		ip[0], ip[5], ip[6], ip[7] = 6<<4, 20, unix.IPPROTO_TCP, 64
	}
	return slices.Concat(ip, from, to, tcp)
}

// send gives packets of the flow to the network, n of them or until stop is closed.
func (l *lab) send(from *host, f Flow, n int, stop <-chan struct{}) {
	domain, to := unix.AF_INET, l.sockaddr(netip.AddrPortFrom(f.Local.Addr(), 0))
	if l.ipv6 {
		domain = unix.AF_INET6
	}
	from.do(func() error {
		fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		packet := acknowledgement(f)
		for ; n != 0; n-- {
			select {
			case <-stop:
				return nil
			default:
			}
			if err := again(func() error { return unix.Sendto(fd, packet, 0, to) }); err != nil {
				return err
			}
		}
		return nil
	})
}

func (l *lab) flow(port uint16) Flow {
	return Flow{Local: netip.AddrPortFrom(l.home.address(l.ipv6), 80), Remote: netip.AddrPortFrom(l.client.address(l.ipv6), port)}
}

func (l *lab) to(h *host) Neighbor {
	return Neighbor{Device: "eth0", IPv4: h.address(false), IPv6: h.address(true)}
}

// received counts the IP packets that have come in.
func (l *lab) received(h *host) int {
	if !l.ipv6 {
		return h.count("Ip", "InReceives")
	}
	n := 0
	h.do(func() error {
		text, err := os.ReadFile("/proc/thread-self/net/snmp6")
		if err == nil {
			_, err = fmt.Sscan(string(text[len("Ip6InReceives"):]), &n)
		}
		return err
	})
	return n
}

// Set leads to another neighbour, and knows other flows and devices, without a packet that
// gets to the host itself in between.
func TestSetReplaces(t *testing.T) {
	eachFamily(t, func(t *testing.T, l *lab) {
		flow := l.flow(1000)
		set := func(i int) {
			f := Forward{Name: name, Devices: []string{"eth0"}, Flows: []Flow{flow}, To: l.to([]*host{l.b, l.c}[i%2])}
			for n := range i % 5 {
				f.Flows = append(f.Flows, l.flow(uint16(2000+n)))
			}
			if i%3 == 0 {
				f.Devices = []string{"lo", "eth0"}
			}
			l.home.do(func() error { return Set(f) })
			l.home.do(func() error {
				all, err := List()
				if err != nil || len(all) != 1 {
					return fmt.Errorf("%v are forwarded: %w", all, err)
				}
				slices.Sort(f.Devices)
				order := func(a, b Flow) int { return a.Remote.Compare(b.Remote) }
				slices.SortFunc(all[0].Flows, order)
				slices.SortFunc(f.Flows, order)
				if got := all[0]; !slices.Equal(got.Devices, f.Devices) || !slices.Equal(got.Flows, f.Flows) || got.To != f.To || got.Name != name {
					t.Errorf("%+v is forwarded instead of %+v", got, f)
				}
				return nil
			})
		}
		set(0)
		l.send(l.client, flow, 1, nil)
		resets := l.home.count("Tcp", "OutRsts")
		before := []int{l.received(l.b), l.received(l.c)}
		stop := make(chan struct{})
		var done sync.WaitGroup
		done.Go(func() { l.send(l.client, flow, -1, stop) })
		for i := range 100 {
			set(i)
		}
		close(stop)
		done.Wait()
		if n := l.home.count("Tcp", "OutRsts") - resets; n > 0 {
			t.Errorf("%d packets have got to the host itself", n)
		}
		if b, c := l.received(l.b)-before[0], l.received(l.c)-before[1]; b < 100 || c < 100 {
			t.Errorf("%d and %d packets were forwarded", b, c)
		}
		l.home.do(func() error { return Remove(name) })
		l.send(l.client, flow, 1, nil)
		eventually(t, "a reset", func() bool { return l.home.count("Tcp", "OutRsts") == resets+1 })
		l.clean()
	})
}

// What is dropped is the host's own again, and nothing else.
func TestDrop(t *testing.T) {
	eachFamily(t, func(t *testing.T, l *lab) {
		first, second, third := l.flow(1), l.flow(2), l.flow(3)
		drop := func(gone ...Flow) { l.home.do(func() error { return Drop(name, gone) }) }
		drop(first) // there is nothing
		l.home.do(func() error {
			return Set(Forward{Name: name, Devices: []string{"eth0"}, Flows: []Flow{first, second}, To: l.to(l.b)})
		})
		resets := 0
		check := func(what string, answered ...Flow) {
			t.Helper()
			for _, f := range []Flow{third, first, second} {
				before := l.home.count("Tcp", "OutRsts")
				if l.send(l.client, f, 1, nil); slices.Contains(answered, f) {
					resets++
					eventually(t, what+", a reset", func() bool { return l.home.count("Tcp", "OutRsts") == before+1 })
				}
			}
			if n := l.home.count("Tcp", "OutRsts"); n != resets {
				t.Errorf("%s: %d resets instead of %d", what, n, resets)
			}
		}
		check("set", third)
		drop(first, third)
		check("first dropped", first, third)
		drop(first)
		check("again", first, third)
		drop(second)
		check("all dropped", first, second, third)
		l.clean()
	})
}

// Many flows go in, and come out again.
func TestMany(t *testing.T) {
	l := newLab(t, false)
	var flows []Flow
	for port := range uint16(20_000) {
		f := l.flow(port + 1)
		if port%2 == 1 {
			f = Flow{
				Local:  netip.AddrPortFrom(l.home.address(true), f.Local.Port()),
				Remote: netip.AddrPortFrom(l.client.address(true), f.Remote.Port()),
			}
		}
		flows = append(flows, f)
	}
	sorted := func(flows []Flow) []Flow {
		return slices.SortedFunc(slices.Values(flows), func(a, b Flow) int { return int(a.Remote.Port()) - int(b.Remote.Port()) })
	}
	l.home.do(func() error {
		err := Set(Forward{Name: name, Devices: []string{"eth0"}, Flows: slices.Concat(flows, flows), To: l.to(l.b)})
		if err != nil {
			return err
		}
		if all, err := List(); err != nil || len(all) != 1 || !slices.Equal(sorted(all[0].Flows), flows) {
			t.Errorf("other flows are forwarded: %v", err)
		}
		if err := Drop(name, flows[:len(flows)-3]); err != nil {
			return err
		}
		if all, err := List(); err != nil || len(all) != 1 || !slices.Equal(sorted(all[0].Flows), flows[len(flows)-3:]) {
			t.Errorf("other flows are forwarded: %v", err)
		}
		if err := errors.Join(Remove(name), Admit(name, flows)); err != nil {
			return err
		}
		if all, err := Guests(); err != nil || !slices.Equal(sorted(all[name]), flows) {
			t.Errorf("others are guests: %v", err)
		}
		return Dismiss(name)
	})
	l.clean()
}

// A device that ends, as a hold's does, and comes again, is no obstacle.
func TestDeviceComesAgain(t *testing.T) {
	eachFamily(t, func(t *testing.T, l *lab) {
		f := Forward{Name: name, Devices: []string{"eth0", "short"}, Flows: []Flow{l.flow(1)}, To: l.to(l.b)}
		for range 3 {
			l.home.do(func() error {
				link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "short"}, PeerName: "short2"}
				return errors.Join(netlink.LinkAdd(link), Set(f), netlink.LinkDel(link))
			})
			l.send(l.client, f.Flows[0], 1, nil)
		}
		l.home.do(func() error {
			f.Devices = f.Devices[:1]
			if err := Set(f); err != nil {
				return err
			}
			if all, err := List(); err != nil || len(all) != 1 || !slices.Equal(all[0].Devices, f.Devices) {
				t.Errorf("%+v are forwarded: %v", all, err)
			}
			f.Devices = append(f.Devices, "nothing")
			if err := Set(f); !errors.As(err, &netlink.LinkNotFoundError{}) {
				t.Errorf("at a device that is not there: %v", err)
			}
			return Remove(name)
		})
		if n := l.home.count("Tcp", "OutRsts"); n > 0 {
			t.Errorf("%d packets have got to the host itself", n)
		}
		l.clean()
	})
}

// Who set it up may die.
func TestOutlives(t *testing.T) {
	l := newLab(t, false)
	for _, h := range []*host{l.home, l.b} {
		h.do(func() error { // a program is in the namespace of the thread that starts it
			cmd := exec.Command("/proc/self/exe", "-test.run=^TestSetUp$")
			cmd.Env = append(os.Environ(), setUp+"="+h.name)
			out, err := cmd.CombinedOutput()
			if err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		})
	}
	listener := l.listen(l.b, 0) // whoever asks for it
	unix.Close(listener.fd)
	l.send(l.client, l.flow(1), 1, nil)
	l.home.do(func() error {
		all, err := List()
		if err != nil || len(all) != 1 || all[0].To != l.to(l.b) || all[0].Packets != 1 {
			t.Errorf("%+v are forwarded: %v", all, err)
		}
		return Remove(name)
	})
	l.b.do(func() error {
		all, err := Guests()
		if err != nil || !slices.Equal(all[name], []Flow{l.flow(1)}) {
			t.Errorf("%+v are guests: %v", all, err)
		}
		return Dismiss(name)
	})
	l.clean()
}

// setUp says to a program what it is to set up.
const setUp = "PAGURUS_FORWARD_SET_UP"

func TestSetUp(t *testing.T) {
	l := &lab{home: &host{number: 1}, b: &host{number: 2}, client: &host{number: 4}}
	var err error
	switch os.Getenv(setUp) {
	case "home":
		err = Set(Forward{Name: name, Devices: []string{"eth0"}, Flows: []Flow{l.flow(1)}, To: l.to(l.b)})
	case "b":
		err = Admit(name, []Flow{l.flow(1)})
	default:
		t.Skip("is part of another test")
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Only hosts on the same link can be reached.
func TestReach(t *testing.T) {
	l := newLab(t, false)
	b4, b6 := l.b.address(false), l.b.address(true)
	far := netip.MustParseAddr("192.0.2.1")
	l.home.do(func() error {
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Gw: b4.AsSlice()})
	})
	for _, c := range []struct {
		addrs []netip.Addr
		want  Neighbor
	}{
		{[]netip.Addr{b4}, Neighbor{"eth0", b4, netip.Addr{}}},
		{[]netip.Addr{b6}, Neighbor{"eth0", netip.Addr{}, b6}},
		{[]netip.Addr{netip.AddrFrom16(b4.As16()), b6}, Neighbor{"eth0", b4, b6}},
		{[]netip.Addr{far, b6, b4, l.c.address(false)}, Neighbor{"eth0", b4, b6}},
		{[]netip.Addr{netip.MustParseAddr("fe80::1%eth0")}, Neighbor{"eth0", netip.Addr{}, netip.MustParseAddr("fe80::1")}},
		{[]netip.Addr{far}, Neighbor{}},
		{[]netip.Addr{netip.MustParseAddr("2001:db8::1")}, Neighbor{}},
		{[]netip.Addr{l.home.address(false), l.home.address(true), netip.MustParseAddr("127.0.0.1")}, Neighbor{}},
		{[]netip.Addr{netip.MustParseAddr("fe80::1%nothing"), {}}, Neighbor{}},
		{nil, Neighbor{}},
	} {
		var got Neighbor
		err := l.home.run(func() (err error) { got, err = Reach(c.addrs); return err })
		if got != c.want || errors.Is(err, ErrNotNeighbor) != (c.want == Neighbor{}) || err != nil && !errors.Is(err, ErrNotNeighbor) {
			t.Errorf("%v: %+v, %v", c.addrs, got, err)
		}
	}
}

func TestInvalid(t *testing.T) {
	four, six := netip.MustParseAddrPort("10.0.0.1:80"), netip.MustParseAddrPort("[fd00::1]:80")
	good := Neighbor{Device: "lo", IPv4: four.Addr()}
	for _, f := range []Forward{
		{},
		{Name: "a/b", Devices: []string{"lo"}, To: good},
		{Name: name, To: good},
		{Name: name, Devices: []string{"lo"}, To: good, Flows: []Flow{{Local: four}}},
		{Name: name, Devices: []string{"lo"}, To: good, Flows: []Flow{{Local: four, Remote: six}}},
		{Name: name, Devices: []string{"lo"}, To: good, Flows: []Flow{{Local: netip.AddrPortFrom(four.Addr(), 0), Remote: four}}},
		{Name: name, Devices: []string{"lo"}, To: good, Flows: []Flow{{Local: six, Remote: six}}},
	} {
		if err := Set(f); !errors.Is(err, ErrInvalid) {
			t.Errorf("%+v: %v", f, err)
		}
	}
	if err := Admit("", nil); !errors.Is(err, ErrInvalid) {
		t.Error(err)
	}
	if err := Admit(name, []Flow{{Local: four}}); !errors.Is(err, ErrInvalid) {
		t.Error(err)
	}
	for _, err := range []error{Remove(""), Drop("", nil), Dismiss("")} {
		if !errors.Is(err, ErrInvalid) {
			t.Error(err)
		}
	}
}

// Guests of several names share the way, which goes with the last of them. What is not
// there can be taken away.
func TestNames(t *testing.T) {
	l := newLab(t, false)
	l.b.do(func() error {
		if err := errors.Join(Dismiss("one"), Admit("one", []Flow{l.flow(1)}), Admit("two", []Flow{l.flow(2)}), Admit("one", []Flow{l.flow(3)}), Dismiss("two"), Remove("two")); err != nil {
			return err
		}
		all, err := Guests()
		if len(all) != 1 || !slices.Equal(all["one"], []Flow{l.flow(3)}) {
			t.Errorf("guests are %v", all)
		}
		rules, err1 := netlink.RuleListFiltered(netlink.FAMILY_V4, &netlink.Rule{Table: RoutingTable}, netlink.RT_FILTER_TABLE)
		if len(rules) != 1 {
			t.Errorf("the rules are %v", rules)
		}
		return errors.Join(err, err1, Dismiss("one"), Dismiss("one"))
	})
	l.clean()
}
