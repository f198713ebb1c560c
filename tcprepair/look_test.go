package tcprepair

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/tcprepair/inet/inettest"
)

// A look tells what Dump does of a socket without a connection, and how many wait
// in a listener, Go's too.
func TestLook(t *testing.T) {
	for _, f := range families {
		for _, protocol := range []int{unix.IPPROTO_TCP, unix.IPPROTO_MPTCP} {
			t.Run(fmt.Sprint(f.name, "/", protocol), func(t *testing.T) {
				inettest.EnterNetwork(t)
				listener := f.listen(t, protocol)
				address := must(unix.Getsockname(listener.fd))
				for want := range 3 {
					s, waiting, err := Look(listener.fd)
					if err != nil || waiting != want {
						t.Fatalf("%d wait instead of %d, %v", waiting, want, err)
					}
					if diff := cmp.Diff(must(Dump(listener.fd)), s, compareAddresses); diff != "" {
						t.Error(diff)
					}
					client := f.socket(t, unix.IPPROTO_TCP)
					if err := unix.Connect(client.fd, f.sockaddr(f.client, portOf(address))); err != nil {
						t.Fatal(err)
					}
				}
				closed := f.socket(t, unix.IPPROTO_TCP)
				s, _, err := Look(closed.fd)
				if err != nil || s.State != Closed || s.Ended || s.Failed || s.Local.IsValid() {
					t.Errorf("a new socket is %+v, %v", s, err)
				}
			})
		}
	}
	t.Run("connection", func(t *testing.T) {
		inettest.EnterNetwork(t)
		server, client := families[0].connect(t)
		s, _, err := Look(server.fd)
		if err != nil || s.State != Established || !s.Local.IsValid() || !s.Remote.IsValid() {
			t.Errorf("it is %+v, %v", s, err)
		}
		if on := must(unix.GetsockoptInt(server.fd, unix.SOL_TCP, unix.TCP_REPAIR)); on != 0 {
			t.Error("it is in repair mode")
		}
		client.shutdown()
		server.awaitState(CloseWait)
		server.shutdown()
		server.awaitState(Closed)
		if s, _, err := Look(server.fd); err != nil || !s.Ended || s.Remote.IsValid() {
			t.Errorf("after its end it is %+v, %v", s, err)
		}
	})
}

var compareAddresses = cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })

// Whether an address can be had is found out without leaving anything behind.
func TestCanBind(t *testing.T) {
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			inettest.EnterNetwork(t)
			listener := f.listen(t, unix.IPPROTO_TCP)
			s := must(Dump(listener.fd))
			if err := CanBind(s, false); !errors.Is(err, unix.EADDRINUSE) {
				t.Errorf("while another one has the port: %v", err)
			}
			if err := unix.Close(listener.fd); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if err := CanBind(s, false); err != nil {
					t.Error(err)
				}
			}
			elsewhere := *s
			elsewhere.Local = netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), s.Local.Port())
			if s.IPv6 {
				elsewhere.Local = netip.AddrPortFrom(netip.MustParseAddr("2001:db8::1"), s.Local.Port())
			}
			if err := CanBind(&elsewhere, false); !errors.Is(err, unix.EADDRNOTAVAIL) {
				t.Errorf("an address of another host: %v", err)
			}
			if err := CanBind(&elsewhere, true); err != nil {
				t.Errorf("an address that the host is to get: %v", err)
			}
			if err := CanBind(must(Dump(f.socket(t, unix.IPPROTO_TCP).fd)), false); err != nil {
				t.Errorf("a socket without an address: %v", err)
			}
		})
	}
}
