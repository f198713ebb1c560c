package e2e

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/pagurus-project/pagurus/e2e/testbed"
	"github.com/pagurus-project/pagurus/migrate"
)

// dialAll connects clients from the outside world to an address, until the test is over.
func dialAll(ctx context.Context, t *testing.T, to netip.AddrPort, n int) testbed.Clients {
	t.Helper()
	all, err := bed.DialAll(ctx, "client", to, n, testbed.Line)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = all.Close() }) // has ended, if the test has not failed
	return all
}

// dialOnce connects from the outside world to an address, until the test is over.
func dialOnce(t *testing.T, to netip.AddrPort) net.Conn {
	t.Helper()
	var conn net.Conn
	if err := within(t, "client", func() (err error) {
		conn, err = net.DialTimeout("tcp", to.String(), 5*time.Second)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() }) // may be closed already
	return conn
}

// mustServe has clients ask while f goes on, and fails the test if they are not answered.
func mustServe(t *testing.T, clients testbed.Clients, f func()) testbed.Seen {
	t.Helper()
	seen := clients.During(f)
	for _, err := range seen.Errors {
		t.Error(err)
	}
	return seen
}

// TestNewConnections: clients that connect, ask and end, again and again, are served
// without a second SYN, whatever the server is just doing.
func TestNewConnections(t *testing.T) {
	ctx := limit(t, 3*time.Minute)
	p := netip.MustParsePrefix("10.77.0.105/24")
	at := netip.AddrPortFrom(p.Addr(), 7342)
	addAddress(ctx, t, p, "host-a")
	server := start(ctx, t, "host-a", "$BIN/workload", "memory", "-size", "16MiB", "-echo", at.String(), "-ask", "$ASK")
	for range trips {
		for _, to := range []string{"host-b", "host-a"} {
			over := make(chan struct{})
			var asking sync.WaitGroup
			var mu sync.Mutex
			var served int
			var longest time.Duration
			for i := range 4 {
				asking.Go(func() {
					for {
						select {
						case <-over:
							return
						case <-time.After(time.Millisecond):
						}
						begun := time.Now()
						c, err := bed.Dial(ctx, "client", at, testbed.Line)
						var again int
						if err == nil {
							err = c.Ask()
						}
						if err == nil {
							again, err = c.SentAgain()
						}
						if err == nil {
							err = c.End()
						}
						if err != nil {
							t.Errorf("client %d: %v", i, err)
							return
						}
						took := time.Since(begun)
						if again > 0 {
							t.Logf("client %d has sent %d segments again; all took %v", i, again, took)
						}
						mu.Lock()
						served, longest = served+1, max(longest, took)
						mu.Unlock()
					}
				})
			}
			moved(ctx, t, server, to)
			close(over)
			asking.Wait()
			if t.Failed() {
				t.Fatal(bed.Logs("host-a", "host-b"))
			}
			t.Logf("%d connections, of which the slowest took %v", served, longest)
		}
	}
}

// retransmission is less than any time-out after which a segment is sent again. On a busy
// machine a process may stand still for longer.
const retransmission = 150 * time.Millisecond

// TestConnections: clients that ask without a pause get every answer, whatever host their
// server is on, and do not notice.
func TestConnections(t *testing.T) {
	need(t, "python3")
	for i, service := range []string{"10.77.0.104/24", "fd77::104/64"} {
		p := netip.MustParsePrefix(service)
		at := netip.AddrPortFrom(p.Addr(), 7341)
		for name, server := range map[string][]string{
			"python": {"python3", script(t, "count.py"), at.Addr().String(), fmt.Sprint(at.Port()), "$ASK"},
			"go":     {"$BIN/workload", "memory", "-size", "16MiB", "-echo", at.String(), "-ask", "$ASK"},
		} {
			t.Run(name+" "+[]string{"IPv4", "IPv6"}[i], func(t *testing.T) {
				ctx := limit(t, 3*time.Minute)
				addAddress(ctx, t, p, "host-a")
				server := start(ctx, t, "host-a", server...)
				clients := dialAll(ctx, t, at, 10)
				wire := newTap(t, at)
				for range trips {
					for _, to := range []string{"host-b", "host-a"} {
						var r migrate.Report
						seen := mustServe(t, clients, func() { r = moved(ctx, t, server, to) })
						if t.Failed() {
							t.Fatal(bed.Logs("host-a", "host-b"))
						}
						again := wire.judge(map[string]string{"host-a": "host-b", "host-b": "host-a"}[to], to)
						t.Logf("%d requests, the longest stall was %v, %d segments came again", seen.Requests, seen.Longest, again)
						if again > 0 && seen.Longest < retransmission {
							t.Errorf("%d segments came again", again)
						}
						if !slices.Equal(r.Addresses, []netip.Prefix{p}) {
							t.Errorf("%v went along, and not %s", r.Addresses, p)
						}
						recreated := func(f migrate.Finding) bool { return f.Code == migrate.CodeRecreated }
						if !slices.ContainsFunc(r.Warnings, recreated) {
							t.Errorf("warnings %v", r.Warnings)
						}
						mustBeAt(ctx, t, p, to)
					}
				}
				rehearsal := func() {
					r, err := bed.Move(ctx, server, "host-b", "--rehearse")
					if err != nil || r.State != migrate.StateRehearsed {
						t.Errorf("rehearsing: %v, %s, %s", err, r.State, r.Stderr)
					}
					t.Logf("a rehearsal: stood still for %.1f ms: %s", r.DowntimeMS, phases(r.Report))
				}
				seen := mustServe(t, clients, rehearsal)
				again := wire.judge("host-a")
				t.Logf("in a rehearsal the longest stall was %v, %d segments came again", seen.Longest, again)
				for i, c := range clients {
					if n, err := c.SentAgain(); err != nil || n > 0 {
						t.Logf("client %d has sent %d segments again: %v", i, n, err)
					}
				}
				if err := clients.End(); err != nil {
					t.Error(err)
				}
			})
		}
	}
}
