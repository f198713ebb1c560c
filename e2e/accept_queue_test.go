package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/pagurus-project/pagurus/migrate"
)

// A waiter is a client that is not accepted yet.
type waiter struct {
	*net.TCPConn
	lines *bufio.Reader
	first string // what it says, by and by
}

// TestAcceptQueue: clients that wait to be accepted wait on the new host, in their order and
// with what they have said, and the program accepts them there.
func TestAcceptQueue(t *testing.T) {
	need(t, "python3")
	for i, test := range []struct{ name, service, protocol string }{
		{"IPv4", "10.77.0.112/24", "tcp"}, {"IPv6", "fd77::112/64", "tcp"}, {"MPTCP", "10.77.0.113/24", "mptcp"},
	} {
		t.Run(test.name, func(t *testing.T) {
			ctx := limit(t, 3*time.Minute)
			p := netip.MustParsePrefix(test.service)
			at := netip.AddrPortFrom(p.Addr(), uint16(7371+2*i))
			addAddress(ctx, t, p, "host-a")
			server := start(ctx, t, "host-a", "python3", script(t, "slow.py"), at.Addr().String(), fmt.Sprint(at.Port()), test.protocol, "$ASK")
			dial := func(to netip.AddrPort) waiter {
				t.Helper()
				conn := dialOnce(t, to)
				if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
					t.Fatal(err)
				}
				return waiter{TCPConn: conn.(*net.TCPConn), lines: bufio.NewReader(conn)}
			}
			orders := dial(netip.AddrPortFrom(at.Addr(), at.Port()+1))
			number := 0
			accept := func(clients []waiter) {
				t.Helper()
				if _, err := fmt.Fprintln(orders, len(clients)); err != nil {
					t.Fatal(err)
				}
				for i, c := range clients {
					number++
					got, err := c.lines.ReadString('\n')
					want := fmt.Sprintf("%d %d %v\n", number, len(c.first), c.LocalAddr().(*net.TCPAddr).IP)
					if err != nil || got != want {
						t.Fatalf("client %d hears %q, not %q: %v%s", i, got, want, err, bed.Logs("host-a", "host-b"))
					}
				}
				if got, err := orders.lines.ReadString('\n'); err != nil || got != fmt.Sprintf("done %d\n", number) {
					t.Fatalf("the server says %q: %v", got, err)
				}
			}
			for range trips {
				for _, to := range []string{"host-b", "host-a"} {
					wire := newTap(t, at)
					clients := make([]waiter, 6)
					says := func(i int, text string) {
						t.Helper()
						clients[i].first += text
						if _, err := io.WriteString(clients[i], text); err != nil {
							t.Fatal(err)
						}
					}
					for i := range clients {
						clients[i] = dial(at)
					}
					says(0, "a line\n")
					says(1, strings.Repeat("x", 100_000))
					says(2, "all that there is\n")
					if err := clients[2].CloseWrite(); err != nil {
						t.Fatal(err)
					}
					says(3, "half a ")
					moved(ctx, t, server, to)
					says(1, strings.Repeat("y", 300_000)+"\n")
					says(3, "line\n")
					says(4, "later\n")
					says(5, strings.Repeat("z", 500_000)+"\n")
					accept(clients)
					wire.judge(map[string]string{"host-a": "host-b", "host-b": "host-a"}[to], to)
				}
			}
			// Where it does not go they are as before.
			left := []waiter{dial(at), dial(at)}
			left[0].first, left[1].first = "early\n", "late\n"
			if _, err := io.WriteString(left[0], left[0].first); err != nil {
				t.Fatal(err)
			}
			if r, err := bed.Move(ctx, server, "host-b", "--rehearse"); err != nil || r.State != migrate.StateRehearsed {
				t.Fatalf("rehearsing: %v, %s, %s", err, r.State, r.Stderr)
			}
			if _, err := io.WriteString(left[1], left[1].first); err != nil {
				t.Fatal(err)
			}
			accept(left)
		})
	}
}
