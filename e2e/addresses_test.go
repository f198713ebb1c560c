package e2e

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/pagurus-project/pagurus/coordinator/api"
	"github.com/pagurus-project/pagurus/e2e/testbed"
	"github.com/pagurus-project/pagurus/migrate"
)

// within runs f on a thread that stands in a host's network.
func within(t *testing.T, name string, f func() error) error {
	t.Helper()
	return bed.Within(name, f)
}

// has reports whether a host has an address.
func has(t *testing.T, name string, a netip.Addr) bool {
	t.Helper()
	var found bool
	if err := within(t, name, func() error {
		all, err := net.InterfaceAddrs()
		for _, x := range all {
			if p, err := netip.ParsePrefix(x.String()); err == nil && p.Addr() == a {
				found = true
			}
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return found
}

// mustReach connects from one host to an address of another one, and fails if that
// takes a second: a neighbour that has to be asked for again does.
func mustReach(t *testing.T, from, to string, a netip.Addr) {
	t.Helper()
	var listener net.Listener
	err := within(t, to, func() (err error) {
		listener, err = net.Listen("tcp", netip.AddrPortFrom(a, 0).String())
		return err
	})
	if err != nil {
		t.Fatalf("listening at %s on %s: %v", a, to, err)
	}
	defer listener.Close()
	err = within(t, from, func() error {
		conn, err := net.DialTimeout("tcp", listener.Addr().String(), 900*time.Millisecond)
		if err == nil {
			err = conn.Close()
		}
		return err
	})
	if err != nil {
		t.Errorf("from %s to %s on %s: %v", from, a, to, err)
	}
}

func addressList(ctx context.Context, t *testing.T) []migrate.Address {
	t.Helper()
	var list api.Addresses
	if code, stderr, err := bed.Run(ctx, &list, "address", "ls"); err != nil || code != 0 {
		t.Fatalf("exit code %d, %v: %s", code, err, stderr)
	}
	return list.Addresses
}

// TestServiceAddresses: an address is on the host that the log says, whatever
// becomes of daemons, and others find it there at once.
func TestServiceAddresses(t *testing.T) {
	for _, service := range []string{"10.77.0.100/24", "fd77::100/64"} {
		t.Run(service, func(t *testing.T) {
			ctx := limit(t, 2*time.Minute)
			p := netip.MustParsePrefix(service)
			a := p.Addr()
			must := func(want int, args ...string) migrate.Address {
				t.Helper()
				var got migrate.Address
				document := any(&got)
				if want != 0 {
					document = nil
				}
				code, stderr, err := bed.Run(ctx, document, append([]string{"address"}, args...)...)
				if err != nil || code != want {
					t.Fatalf("address %v: exit code %d, %v: %s", args, code, err, stderr)
				}
				return got
			}
			t.Cleanup(func() {
				ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
				defer cancel()
				_, _, _ = bed.Run(ctx, nil, "address", "rm", a.String()) // a test that failed has left it
			})
			if got := must(0, "add", service, "--host", "host-a"); got.Host != "host-a" || got.Prefix != p || got.Leaving {
				t.Errorf("added: %+v", got)
			}
			if !has(t, "host-a", a) {
				t.Error("host-a does not have it")
			}
			mustReach(t, "host-b", "host-a", a)
			mustReach(t, "host-c", "host-a", a)

			must(0, "add", service, "--host", "host-a")
			must(2, "add", service, "--host", "host-b")
			must(2, "add", service, "--host", "host-z")
			must(2, "add", netip.PrefixFrom(a, p.Bits()-1).String(), "--host", "host-b")
			must(2, "add", a.String(), "--host", "host-b")
			must(2, "rm", a.Next().String())
			for _, own := range []string{"host-b", "host-c"} {
				must(2, "add", netip.PrefixFrom(host(t, own).Address(), 24).String(), "--host", "host-b")
			}

			// It outlives the agent and the leader.
			agent := host(t, "host-a").Daemon("agent")
			if err := agent.Stop(ctx); err != nil {
				t.Fatal(err)
			}
			mustReach(t, "host-b", "host-a", a)
			if got := must(0, "rm", a.String()); !got.Leaving {
				t.Errorf("removed without the host's word: %+v", got)
			}
			must(2, "add", service, "--host", "host-b")
			leader := bed.Lab.Status(ctx).Leader
			if err := host(t, leader).Daemon("coordinator").Kill(ctx); err != nil {
				t.Fatal(err)
			}
			if list := addressList(ctx, t); len(list) != 1 || list[0].Host != "host-a" || !list[0].Leaving {
				t.Errorf("listed: %+v", list)
			}
			if !has(t, "host-a", a) {
				t.Error("host-a has lost it")
			}
			if err := agent.Start(ctx); err != nil {
				t.Fatal(err)
			}
			if err := testbed.Await(ctx, "the address to be gone", func() (bool, error) { return len(addressList(ctx, t)) == 0, nil }); err != nil {
				t.Fatal(err)
			}
			if has(t, "host-a", a) {
				t.Error("host-a still has it")
			}

			// Where it is next is told to those who knew it elsewhere.
			must(0, "add", service, "--host", "host-b")
			mustReach(t, "host-c", "host-b", a)
			mustReach(t, "host-a", "host-b", a)
			if got := must(0, "rm", a.String()); got.Leaving || has(t, "host-b", a) {
				t.Errorf("removed: %+v, there: %v", got, has(t, "host-b", a))
			}
			if list := addressList(ctx, t); len(list) != 0 {
				t.Errorf("left: %+v", list)
			}
		})
	}
}
