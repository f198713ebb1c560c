package timewait

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A host is a network of its own.
type host struct {
	t    *testing.T
	run  func(func() error) error // runs in it
	name int                      // a descriptor of it
}

func newHost(t *testing.T) *host {
	t.Helper()
	requests, answers := make(chan func() error), make(chan error)
	go func() { // on a thread that ends with it
		runtime.LockOSThread()
		for f := range requests {
			answers <- f()
		}
	}()
	t.Cleanup(func() { close(requests) })
	h := &host{t: t, run: func(f func() error) error {
		requests <- f
		return <-answers
	}}
	h.do(func() (err error) {
		if err = unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		if h.name, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
			return err
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	t.Cleanup(func() { unix.Close(h.name) })
	return h
}

// do runs what must not fail in the host's network.
func (h *host) do(f func() error) {
	h.t.Helper()
	if err := h.run(f); err != nil {
		h.t.Fatal(err)
	}
}

// put gives addresses to a device, and brings it up.
func put(device string, addresses ...string) error {
	l, err := netlink.LinkByName(device)
	if err != nil {
		return err
	}
	errs := []error{netlink.LinkSetUp(l)}
	for _, address := range addresses {
		a, err := netlink.ParseAddr(address)
		if err == nil {
			a.Flags = unix.IFA_F_NODAD
			err = netlink.AddrAdd(l, a)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// A world has two hosts, one after the other at the end of a wire to a client.
type world struct {
	from, to, client *host
}

var (
	serverAddresses = []string{"10.9.0.1/24", "fd09::1/64"}
	clientAddresses = []string{"10.9.0.2/24", "fd09::2/64"}
	aside           = []string{"10.9.0.9/24", "fd09::9/64"}
)

func newWorld(t *testing.T, timestamps bool) *world {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	t.Parallel()
	w := &world{newHost(t), newHost(t), newHost(t)}
	w.from.do(func() error {
		err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "wire"}, PeerName: "wire", PeerNamespace: netlink.NsFd(w.client.name)})
		return errors.Join(err, put("wire", serverAddresses...))
	})
	w.client.do(func() error {
		err := put("wire", clientAddresses...)
		if !timestamps {
			err = errors.Join(err, os.WriteFile("/proc/sys/net/ipv4/tcp_timestamps", []byte("0"), 0))
		}
		return err
	})
	// The way to the client leads nowhere yet.
	w.to.do(func() error {
		err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "out"}, PeerName: "nowhere"})
		if err := errors.Join(err, put("nowhere"), put("out", slices.Concat(serverAddresses, aside)...)); err != nil {
			return err
		}
		out, err := netlink.LinkByName("out")
		for _, address := range clientAddresses {
			p := netip.MustParsePrefix(address)
			err = errors.Join(err, netlink.NeighSet(&netlink.Neigh{
				LinkIndex: out.Attrs().Index, State: netlink.NUD_PERMANENT, IP: p.Addr().AsSlice(), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 1},
			}))
		}
		return err
	})
	return w
}

// cut takes the first host off the wire.
func (w *world) cut() {
	w.from.t.Helper()
	w.from.do(func() error {
		l, err := netlink.LinkByName("wire")
		if err != nil {
			return err
		}
		return netlink.LinkSetNsFd(l, w.to.name)
	})
}

// join brings the second one there.
func (w *world) join() {
	w.to.t.Helper()
	w.to.do(func() error {
		out, err := netlink.LinkByName("out")
		if err != nil {
			return err
		}
		return errors.Join(netlink.LinkDel(out), put("wire", serverAddresses...))
	})
}

// A tap sees the TCP segments that leave a host by a device, or come to it.
type tap struct {
	t  *testing.T
	fd int
}

func (h *host) tap(device string) *tap {
	h.t.Helper()
	p := &tap{t: h.t}
	h.do(func() (err error) {
		all := uint16(unix.ETH_P_ALL)
		if p.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
			return err
		}
		l, err := netlink.LinkByName(device)
		if err != nil {
			return err
		}
		return unix.Bind(p.fd, &unix.SockaddrLinklayer{Protocol: all<<8 | all>>8, Ifindex: l.Attrs().Index})
	})
	h.t.Cleanup(func() { unix.Close(p.fd) })
	return p
}

// A seen is one of those.
type seen struct {
	from     netip.AddrPort
	seq, ack uint32
	flags    byte
}

const (
	flagSYN = 2
	flagRST = 4
	flagACK = 16
)

// drain returns what was seen since the last time.
func (p *tap) drain() []seen {
	p.t.Helper()
	var all []seen
	buf := make([]byte, 1<<16)
	for {
		n, _, err := unix.Recvfrom(p.fd, buf, 0)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENETDOWN):
			return all
		case err != nil:
			p.t.Fatal(err)
		}
		if s, ok := parse(buf[:n]); ok {
			all = append(all, s)
		}
	}
}

func parse(ip []byte) (s seen, ok bool) {
	var from netip.Addr
	var tcp []byte
	switch {
	case len(ip) >= 40 && ip[0]>>4 == 4 && ip[9] == unix.IPPROTO_TCP:
		from, tcp = netip.AddrFrom4([4]byte(ip[12:16])), ip[ip[0]&0xf*4:]
	case len(ip) >= 60 && ip[0]>>4 == 6 && ip[6] == unix.IPPROTO_TCP:
		from, tcp = netip.AddrFrom16([16]byte(ip[8:24])), ip[40:]
	default:
		return s, false
	}
	return seen{
		netip.AddrPortFrom(from, binary.BigEndian.Uint16(tcp)), binary.BigEndian.Uint32(tcp[4:]), binary.BigEndian.Uint32(tcp[8:]), tcp[13],
	}, true
}

// await waits for something that does not take long.
func await(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !f(); <-time.After(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}
