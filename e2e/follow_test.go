package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"

	"github.com/pagurus-project/pagurus/migrate"
)

// addAddress gives a host a service address, until the test is over.
func addAddress(ctx context.Context, t *testing.T, p netip.Prefix, name string) {
	t.Helper()
	if code, stderr, err := bed.Run(ctx, nil, "address", "add", p.String(), "--host", name); err != nil || code != 0 {
		t.Fatalf("adding %s: exit code %d, %v: %s", p, code, err, stderr)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
		if code, stderr, err := bed.Run(ctx, nil, "address", "rm", p.Addr().String()); err != nil || code != 0 {
			t.Errorf("removing %s: exit code %d, %v: %s", p, code, err, stderr)
		}
		for _, name := range []string{"host-a", "host-b"} {
			if has(t, name, p.Addr()) {
				t.Errorf("%s still has %s", name, p.Addr())
			}
			mustSpeak(t, name)
		}
	})
}

// mustSpeak fails if a host is silent about some address.
func mustSpeak(t *testing.T, name string) {
	t.Helper()
	if err := within(t, name, func() error {
		conn, err := nftables.New()
		if err != nil {
			return err
		}
		tables, err := conn.ListTables()
		for _, table := range tables {
			if strings.HasPrefix(table.Name, "pagurus-silent-") {
				t.Errorf("%s has firewall table %s", name, table.Name)
			}
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// mustBeAt fails unless a service address is there, by the log and in fact, and
// nowhere else, and everybody finds it at once.
func mustBeAt(ctx context.Context, t *testing.T, p netip.Prefix, name string) {
	t.Helper()
	there := func(a migrate.Address) bool { return a.Prefix == p && a.Host == name && !a.Leaving }
	if all := addressList(ctx, t); !slices.ContainsFunc(all, there) {
		t.Errorf("%s is not on %s by the log: %+v", p, name, all)
	}
	for _, h := range []string{"host-a", "host-b", "host-c"} {
		if has(t, h, p.Addr()) != (h == name) {
			t.Errorf("%s has %s: %v", h, p, h != name)
		}
		mustSpeak(t, h)
		if h != name {
			mustReach(t, h, name, p.Addr())
		}
	}
	mustReach(t, "client", name, p.Addr())
}

// TestAddressFollows: a service address goes where the process goes that listens
// there, and who connects to it finds the same program.
func TestAddressFollows(t *testing.T) {
	need(t, "python3")
	for _, service := range []string{"10.77.0.101/24", "fd77::101/64"} {
		p := netip.MustParsePrefix(service)
		at := netip.AddrPortFrom(p.Addr(), 7321)
		for _, all := range []bool{false, true} {
			name, listens, flags := "bound to "+service, p.Addr().String(), []string(nil)
			if all { // of a program that listens on all addresses it has to be said
				name, flags = "listening on all, with "+service, []string{"--with-address", p.Addr().String()}
				if listens = "0.0.0.0"; p.Addr().Is6() {
					listens = "::"
				}
			}
			t.Run(name, func(t *testing.T) {
				ctx := limit(t, 3*time.Minute)
				addAddress(ctx, t, p, "host-a")
				server := start(ctx, t, "host-a", "python3", script(t, "serve.py"), listens, fmt.Sprint(at.Port()), "$ASK")
				number := 0
				next := func() {
					t.Helper()
					number++
					if got := ask(t, "client", at); got != fmt.Sprint(number) {
						t.Errorf("on %s: %q instead of %d", server.Host, got, number)
					}
				}
				next()
				for range trips {
					for _, to := range []string{"host-b", "host-a"} {
						r := moved(ctx, t, server, to, flags...)
						next() // before anything else
						if !slices.Equal(r.Addresses, []netip.Prefix{p}) {
							t.Errorf("%v went along, and not %s", r.Addresses, p)
						}
						mustBeAt(ctx, t, p, to)
						next()
					}
				}
				rehearsal, err := bed.Move(ctx, server, "host-b", append(flags, "--rehearse")...)
				if err != nil || rehearsal.State != migrate.StateRehearsed {
					t.Fatalf("rehearsing: %v, %s, %s", err, rehearsal.State, rehearsal.Stderr)
				}
				next()
				mustBeAt(ctx, t, p, "host-a")
				next()
			})
		}
	}
}

// TestAddressFollowsNot: what keeps a service address from going along is told
// before anything is touched.
func TestAddressFollowsNot(t *testing.T) {
	need(t, "python3")
	ctx := limit(t, 2*time.Minute)
	p := netip.MustParsePrefix("10.77.0.102/24")
	addAddress(ctx, t, p, "host-a")
	server := start(ctx, t, "host-a", "python3", script(t, "serve.py"), p.Addr().String(), "7331", "$ASK")
	t.Run("another program has it", func(t *testing.T) {
		other := start(ctx, t, "host-a", "python3", script(t, "serve.py"), p.Addr().String(), "7332", "$ASK")
		refused(ctx, t, server, "host-b", migrate.CodeAddressInUse)
		refused(ctx, t, other, "host-b", migrate.CodeAddressInUse)
	})
	t.Run("no such address", func(t *testing.T) {
		all := start(ctx, t, "host-a", "python3", script(t, "serve.py"), "0.0.0.0", "7333", "$ASK")
		r, err := bed.Move(ctx, all, "host-b", "--with-address", "10.77.0.103")
		if err != nil || r.State != migrate.StateRefused || len(r.Blockers) != 1 || r.Blockers[0].Code != migrate.CodeAddressMissing {
			t.Errorf("%v, %s, %v", err, r.State, r.Blockers)
		}
	})
	t.Run("not asked for", func(t *testing.T) {
		all := start(ctx, t, "host-a", "python3", script(t, "serve.py"), "0.0.0.0", "7334", "$ASK")
		r := moved(ctx, t, all, "host-b")
		stays := func(f migrate.Finding) bool {
			return f.Code == migrate.CodeAddressStays && strings.Contains(f.Detail, "7334")
		}
		if !slices.ContainsFunc(r.Warnings, stays) || len(r.Addresses) != 0 {
			t.Errorf("warnings %v, addresses %v", r.Warnings, r.Addresses)
		}
		mustBeAt(ctx, t, p, "host-a")
	})
	t.Run("taken away in a migration", func(t *testing.T) {
		f := newFault(t, "host-a", "promised")
		f.begin()
		f.await("the migration to be held", f.isHeld)
		out, err := f.command("address", "rm", alongFault.Addr().String()).CombinedOutput()
		if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 2 || !strings.Contains(string(out), f.id) {
			t.Errorf("%v: %s", err, out)
		}
		f.letGo()
		f.judge([]migrate.State{migrate.StateDone})
	})
}
