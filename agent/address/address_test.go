package address

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A network is a host, in which the test's goroutine is, and a neighbour.
type network struct {
	t         *testing.T
	device    netlink.Link                         // the host's
	neighbour func(func(netlink.Link) error) error // runs there, with its device
	service   netip.Prefix
}

// newNetwork lays a cable between two networks of their own, with addresses of the
// family of a service address that nobody has yet.
func newNetwork(t *testing.T, service string) *network {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	t.Parallel()
	runtime.LockOSThread() // for good: the thread ends with the goroutine
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatalf("making a network namespace: %v", err)
	}
	n := &network{t: t, service: netip.MustParsePrefix(service)}
	run, namespace := startNeighbour(t)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "eth0"
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(namespace)}); err != nil {
		t.Fatal("laying a cable:", err)
	}
	up := func(host byte) (netlink.Link, error) {
		device, err := netlink.LinkByName("eth0")
		if err != nil {
			return nil, err
		}
		a := n.service.Masked().Addr().AsSlice()
		a[len(a)-1] = host
		own := &netlink.Addr{IPNet: &net.IPNet{IP: a, Mask: net.CIDRMask(n.service.Bits(), 8*len(a))}, Flags: unix.IFA_F_NODAD}
		return device, errors.Join(netlink.AddrAdd(device, own), netlink.LinkSetUp(device))
	}
	var err error
	if n.device, err = up(1); err != nil {
		t.Fatal(err)
	}
	n.neighbour = func(f func(netlink.Link) error) error {
		return run(func() error {
			device, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			return f(device)
		})
	}
	if err := run(func() error { _, err := up(2); return err }); err != nil {
		t.Fatal(err)
	}
	return n
}

// startNeighbour makes another network, and returns how something is done there.
func startNeighbour(t *testing.T) (run func(func() error) error, namespace int) {
	t.Helper()
	requests, answers := make(chan func() error), make(chan error)
	go func() {
		runtime.LockOSThread()
		for f := range requests {
			answers <- f()
		}
	}()
	t.Cleanup(func() { close(requests) })
	run = func(f func() error) error {
		requests <- f
		return <-answers
	}
	err := run(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		namespace, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Close(namespace); err != nil {
			t.Error(err)
		}
	})
	return run, namespace
}

// ask has the neighbour ask for the service address, and returns what came of it:
// a state of its own entry (NUD_REACHABLE, NUD_FAILED) and the hardware address.
func (n *network) ask() (state int, at net.HardwareAddr) {
	n.t.Helper()
	err := n.neighbour(func(device netlink.Link) error {
		entry := netlink.Neigh{LinkIndex: device.Attrs().Index, Family: family(n.service.Addr()), IP: n.service.Addr().AsSlice(), State: netlink.NUD_NONE}
		if err := netlink.NeighDel(&entry); err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
		conn, err := net.Dial("udp", net.JoinHostPort(n.service.Addr().String(), "9"))
		if err != nil {
			return err
		}
		defer conn.Close()
		if _, err := conn.Write([]byte("?")); err != nil {
			return err
		}
		deadline := time.Now().Add(20 * time.Second)
		for time.Now().Before(deadline) {
			found, err := n.entry(device)
			if err != nil {
				return err
			}
			if found != nil && found.State&(netlink.NUD_REACHABLE|netlink.NUD_STALE|netlink.NUD_DELAY|netlink.NUD_PROBE|netlink.NUD_FAILED) != 0 {
				state, at = found.State, found.HardwareAddr
				return nil
			}
			<-time.After(time.Millisecond)
		}
		return errors.New("the neighbour waits for an answer without end")
	})
	if err != nil {
		n.t.Fatal(err)
	}
	return state, at
}

// entry is what the neighbour, where the calling thread is, knows of the service
// address.
func (n *network) entry(device netlink.Link) (*netlink.Neigh, error) {
	all, err := netlink.NeighList(device.Attrs().Index, family(n.service.Addr()))
	if err != nil {
		return nil, err
	}
	for i := range all {
		if addrOf(all[i].IP) == n.service.Addr() {
			return &all[i], nil
		}
	}
	return nil, nil
}

var services = []string{"10.9.0.100/24", "fd00:9::100/64"}

func TestPut(t *testing.T) {
	for _, service := range services {
		t.Run(service, func(t *testing.T) {
			n := newNetwork(t, service)
			has := func() bool {
				t.Helper()
				all, err := netlink.AddrList(n.device, family(n.service.Addr()))
				if err != nil {
					t.Fatal(err)
				}
				for _, a := range all {
					if addrOf(a.IP) == n.service.Addr() {
						return true
					}
				}
				return false
			}
			for _, want := range []bool{true, false} {
				if put, err := Put(n.service); err != nil || put != want || !has() {
					t.Fatalf("put: %v, %v, there: %v", put, err, has())
				}
			}
			if state, at := n.ask(); state&netlink.NUD_FAILED != 0 || !bytes.Equal(at, n.device.Attrs().HardwareAddr) {
				t.Errorf("the neighbour finds it %#x at %v, not at %v", state, at, n.device.Attrs().HardwareAddr)
			}
			if err := Check(n.service); !errors.Is(err, ErrPresent) {
				t.Errorf("it could be put on once more: %v", err)
			}
			// Nobody's packets have it as their source who does not ask for it.
			peer := n.service.Masked().Addr().Next().Next()
			conn, err := net.Dial("udp", netip.AddrPortFrom(peer, 9).String())
			if err != nil {
				t.Fatal(err)
			}
			if source := conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr(); source == n.service.Addr() {
				t.Errorf("it is the source of other connections")
			}
			if err := conn.Close(); err != nil {
				t.Error(err)
			}
			for range 2 {
				if err := Remove(n.service.Addr()); err != nil || has() {
					t.Fatalf("removed: %v, there: %v", err, has())
				}
			}
			// What the host has for itself is not a service address.
			own := n.service.Masked().Addr().Next()
			if err := Check(netip.PrefixFrom(own, n.service.Bits())); !errors.Is(err, ErrPresent) {
				t.Errorf("%s can be a service address: %v", own, err)
			}
			if err := Remove(own); err != nil {
				t.Fatal(err)
			}
			if err := Check(n.service); err != nil {
				t.Errorf("the host's own address is gone: %v", err)
			}
		})
	}
}

func TestPutElsewhere(t *testing.T) {
	newNetwork(t, services[0])
	for _, elsewhere := range []string{"10.8.0.100/24", "10.9.0.100/16", "fd00:8::100/64"} {
		if _, err := Put(netip.MustParsePrefix(elsewhere)); !errors.Is(err, ErrNoNetwork) {
			t.Errorf("%s: %v", elsewhere, err)
		}
		if err := Check(netip.MustParsePrefix(elsewhere)); !errors.Is(err, ErrNoNetwork) {
			t.Errorf("%s: %v", elsewhere, err)
		}
	}
}

func TestSilence(t *testing.T) {
	for _, service := range services {
		t.Run(service, func(t *testing.T) {
			n := newNetwork(t, service)
			if _, err := Put(n.service); err != nil {
				t.Fatal(err)
			}
			other := n.service.Addr().Next()
			if _, err := Put(netip.PrefixFrom(other, n.service.Bits())); err != nil {
				t.Fatal(err)
			}
			// The neighbour gives up sooner than after three seconds.
			kind := map[int]string{netlink.FAMILY_V4: "ipv4", netlink.FAMILY_V6: "ipv6"}[family(n.service.Addr())]
			if err := n.neighbour(func(netlink.Link) error {
				return os.WriteFile(fmt.Sprintf("/proc/sys/net/%s/neigh/eth0/retrans_time_ms", kind), []byte("50"), 0)
			}); err != nil {
				t.Fatal(err)
			}
			if err := Silence("test", []netip.Addr{n.service.Addr()}); err != nil {
				t.Fatal(err)
			}
			if state, _ := n.ask(); state&netlink.NUD_FAILED == 0 {
				t.Errorf("the neighbour has an answer: %#x", state)
			}
			silent := n.service
			n.service = netip.PrefixFrom(other, silent.Bits())
			if state, _ := n.ask(); state&netlink.NUD_FAILED != 0 {
				t.Errorf("nothing is heard of %s either", other)
			}
			n.service = silent
			for range 2 {
				if err := Speak("test"); err != nil {
					t.Fatal(err)
				}
			}
			if state, _ := n.ask(); state&netlink.NUD_FAILED != 0 {
				t.Error("the neighbour has no answer after the silence")
			}
			conn, err := nftables.New()
			if err != nil {
				t.Fatal(err)
			}
			if tables, err := conn.ListTables(); err != nil || len(tables) > 0 {
				t.Errorf("firewall tables are left: %v, %v", tables, err)
			}
		})
	}
}

// A neighbour that takes the address for another host's learns where it is.
func TestAnnounce(t *testing.T) {
	elsewhere := net.HardwareAddr{2, 0, 0, 0, 0, 9}
	for _, service := range services {
		t.Run(service, func(t *testing.T) {
			n := newNetwork(t, service)
			if _, err := Put(n.service); err != nil {
				t.Fatal(err)
			}
			if err := n.neighbour(func(device netlink.Link) error {
				return netlink.NeighSet(&netlink.Neigh{
					LinkIndex: device.Attrs().Index, Family: family(n.service.Addr()), IP: n.service.Addr().AsSlice(),
					State: netlink.NUD_REACHABLE, HardwareAddr: elsewhere,
				})
			}); err != nil {
				t.Fatal(err)
			}
			if err := Announce(n.service); err != nil {
				t.Fatal(err)
			}
			deadline := time.Now().Add(20 * time.Second)
			var at net.HardwareAddr
			for !bytes.Equal(at, n.device.Attrs().HardwareAddr) && time.Now().Before(deadline) {
				if err := n.neighbour(func(device netlink.Link) error {
					found, err := n.entry(device)
					if err == nil && found != nil {
						at = found.HardwareAddr
					}
					return err
				}); err != nil {
					t.Fatal(err)
				}
				<-time.After(time.Millisecond)
			}
			if !bytes.Equal(at, n.device.Attrs().HardwareAddr) {
				t.Errorf("the neighbour takes it to be at %v", at)
			}
		})
	}
}
