package timewait

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/tcprepair"
	"github.com/pagurus-project/pagurus/tcprepair/hold"
	"github.com/pagurus-project/pagurus/tcprepair/inet"
)

// A kind is what listens for what.
type kind struct {
	name         string
	ipv6, wire6  bool
	local, there string // of the server, as its socket has it
}

var kinds = []kind{
	{"IPv4", false, false, "10.9.0.1", "10.9.0.1"},
	{"IPv6", true, true, "fd09::1", "fd09::1"},
	{"mapped", true, false, "::", "10.9.0.1"},
}

func socket(ipv6 bool) (int, error) {
	domain := unix.AF_INET
	if ipv6 {
		domain = unix.AF_INET6
	}
	fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	second := unix.Timeval{Sec: 10} // nothing may hang
	return fd, errors.Join(
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &second),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &second),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
}

func (k kind) listen(port uint16) (fd int, at netip.AddrPort, err error) {
	if fd, err = socket(k.ipv6); err != nil {
		return -1, at, err
	}
	sa, err := inet.Sockaddr(netip.AddrPortFrom(netip.MustParseAddr(k.local), port), k.ipv6)
	if err = errors.Join(err, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, 77)); err == nil {
		err = errors.Join(unix.Bind(fd, sa), unix.Listen(fd, 8))
	}
	if err != nil {
		return -1, at, err
	}
	name, err := unix.Getsockname(fd)
	if err == nil {
		at, err = inet.Endpoint(name)
	}
	return fd, netip.AddrPortFrom(netip.MustParseAddr(k.there), at.Port()), err
}

// dial connects a client, from a port if it is not 0.
func (k kind) dial(to netip.AddrPort, port uint16) (fd int, from netip.AddrPort, err error) {
	if fd, err = socket(k.wire6); err != nil {
		return -1, from, err
	}
	host := netip.MustParseAddr("10.9.0.2")
	if k.wire6 {
		host = netip.MustParseAddr("fd09::2")
	}
	own, err1 := inet.Sockaddr(netip.AddrPortFrom(host, port), k.wire6)
	there, err2 := inet.Sockaddr(to, k.wire6)
	if err = errors.Join(err1, err2); err == nil {
		if err = unix.Bind(fd, own); err == nil {
			err = unix.Connect(fd, there)
		}
	}
	if err != nil {
		return -1, from, fmt.Errorf("connecting: %w", err)
	}
	name, err := unix.Getsockname(fd)
	if err == nil {
		from, err = inet.Endpoint(name)
	}
	return fd, from, err
}

func accept(listener int) (fd int, err error) {
	for {
		fd, _, err = unix.Accept4(listener, unix.SOCK_CLOEXEC)
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

func stateOf(t *testing.T, fd int) tcprepair.State {
	t.Helper()
	info, err := unix.GetsockoptTCPInfo(fd, unix.SOL_TCP, unix.TCP_INFO)
	if err != nil {
		t.Fatal(err)
	}
	return tcprepair.State(info.State)
}

// list lists what a host has at the server's address.
func (h *host) list(l *Lister, k kind, limit int) (all []tcprepair.TimeWait, others int) {
	h.t.Helper()
	h.do(func() (err error) {
		all, others, err = l.List([]netip.Addr{netip.MustParseAddr(k.there)}, limit)
		return err
	})
	return all, others
}

func newLister(t *testing.T) *Lister {
	t.Helper()
	l, err := NewLister()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// What a client sends again after the move, or only then, is acknowledged where the server's address
// is by then, and a new connection of the same two ends is taken.
func TestMove(t *testing.T) {
	for _, k := range kinds {
		for _, timestamps := range []bool{true, false} {
			for _, half := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/timestamps=%v/half=%v", k.name, timestamps, half), func(t *testing.T) { testMove(t, k, timestamps, half) })
			}
		}
	}
}

func testMove(t *testing.T, k kind, timestamps, half bool) {
	w, lister := newWorld(t, timestamps), newLister(t)
	var listener, server, client int
	var at, from netip.AddrPort
	w.from.do(func() (err error) { listener, at, err = k.listen(0); return err })
	w.client.do(func() (err error) { client, from, err = k.dial(at, 0); return err })
	server, err := accept(listener)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { unix.Close(client) }()
	for _, end := range [][2]int{{server, client}, {client, server}} {
		buf := make([]byte, 5)
		_, err1 := unix.Write(end[0], []byte("hello"))
		n, err2 := unix.Read(end[1], buf)
		if err := errors.Join(err1, err2); err != nil || string(buf[:n]) != "hello" {
			t.Fatalf("%q, %v", buf[:n], err)
		}
	}
	if err := errors.Join(unix.Close(server), unix.Close(listener)); err != nil {
		t.Fatal(err)
	}
	await(t, "the server's FIN", func() bool { return stateOf(t, client) == tcprepair.CloseWait })
	if !half {
		deaf := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K}}
		err := unix.SetsockoptSockFprog(client, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &deaf[0]})
		if err := errors.Join(err, unix.Shutdown(client, unix.SHUT_WR)); err != nil {
			t.Fatal(err)
		}
	}
	var all []tcprepair.TimeWait
	await(t, "the end of the server's connection", func() bool {
		all, _ = w.from.list(lister, k, 10)
		return len(all) == 1 && all[0].FinWait == half
	})
	was := all[0]
	local, remote := netip.AddrPortFrom(was.Local.Addr().Unmap(), was.Local.Port()), netip.AddrPortFrom(was.Remote.Addr().Unmap(), was.Remote.Port())
	if local != at || remote != from || was.IPv6 != k.ipv6 || was.Timestamps != timestamps || was.Mark != 77 || !was.Reuse || was.Left < 50*time.Second || was.Left > time.Minute {
		t.Errorf("the connection of %v and %v is listed as %+v", at, from, was)
	}
	if none, others := w.from.list(lister, k, 0); len(none) != 0 || others != 1 {
		t.Errorf("of a limit of none %d are listed, and %d are not", len(none), others)
	}
	w.cut()

	// As a move does it.
	const strays = "strays"
	w.to.do(func() error { return hold.DropStrays(strays, []netip.Addr{at.Addr()}) })
	out := w.to.tap("out")
	w.to.do(func() error {
		r, err := tcprepair.NewRestorer()
		if err != nil {
			return err
		}
		return r.RestoreTimeWait(&was)
	})
	if packets := out.drain(); len(packets) != 0 {
		t.Errorf("making it has sent %+v", packets)
	}
	w.to.do(func() error { return hold.Remove(strays) })
	there, _ := w.to.list(lister, k, 10)
	vague := cmpopts.IgnoreFields(tcprepair.TimeWait{}, "Left", "Timestamp", "Window")
	addresses := cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })
	if diff := cmp.Diff(all, there, vague, addresses); diff != "" {
		t.Errorf("the time-wait is another one (-was +is):\n%s", diff)
	} else if now := there[0]; timestamps && now.Timestamp-was.Timestamp > 20_000 {
		t.Errorf("its clock was at %d, and is at %d", was.Timestamp, now.Timestamp)
	}

	wire := w.client.tap("wire")
	w.join()
	if half {
		if err := unix.Shutdown(client, unix.SHUT_WR); err != nil {
			t.Fatal(err)
		}
	} else if err := unix.SetsockoptInt(client, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0); err != nil {
		t.Fatal(err)
	}
	await(t, "the acknowledgement of the client's FIN", func() bool { return stateOf(t, client) == tcprepair.Closed })
	if now, _ := w.to.list(lister, k, 10); len(now) != 1 || now[0].FinWait {
		t.Errorf("when both have ended there is %+v", now)
	}
	packets := wire.drain()
	if len(packets) == 0 {
		t.Error("nothing was seen on the wire")
	}
	for _, p := range packets {
		if p.from == at && (p.flags != flagACK || p.seq != was.SendNext) {
			t.Errorf("the server has sent %+v", p)
		}
	}

	// The same two ends once more.
	w.to.do(func() (err error) { listener, _, err = k.listen(at.Port()); return err })
	defer unix.Close(listener)
	var again int
	w.client.do(func() (err error) { again, _, err = k.dial(at, from.Port()); return err })
	defer unix.Close(again)
	if server, err = accept(listener); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(server)
	packets = wire.drain()
	i := slices.IndexFunc(packets, func(p seen) bool { return p.from == at && p.flags&flagSYN != 0 })
	if i < 0 || packets[i].seq != was.SendNext+65535+2 { // tcp_timewait_state_process, net/ipv4/tcp_minisocks.c
		t.Errorf("the new connection begins with %+v, after %d", packets, was.SendNext)
	}
	w.to.do(func() error {
		r, err := tcprepair.NewRestorer()
		if err != nil {
			return err
		}
		if err := r.RestoreTimeWait(&was); !errors.Is(err, tcprepair.ErrConnected) {
			return fmt.Errorf("with another connection: %w", err)
		}
		return nil
	})
}
