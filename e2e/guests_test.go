package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/e2e/testbed"
	"github.com/pagurus-project/pagurus/migrate"
)

// awaitPassed waits until a migration tells that its connections are passed on just so.
func awaitPassed(ctx context.Context, t *testing.T, id string, want ...migrate.PassedOn) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	var r migrate.Report
	err := testbed.Await(ctx, "connections to be passed on otherwise", func() (bool, error) {
		<-time.After(100 * time.Millisecond)
		r = migrate.Report{}
		_, _, err := bed.Run(ctx, &r, "show", id)
		return slices.Equal(r.PassedOn, want), err
	})
	if err != nil {
		t.Fatalf("%v: %v instead of %v%s", err, r.PassedOn, want, bed.Logs("host-a", "host-b", "host-c"))
	}
}

// dialHalf connects from the outside world; the server sends no more then, and reads on.
func dialHalf(t *testing.T, at netip.AddrPort) net.Conn {
	t.Helper()
	conn := dialOnce(t, at)
	_, err := io.WriteString(conn, "enough\n")
	if err == nil {
		var got []byte
		if got, err = io.ReadAll(conn); err == nil && string(got) != "enough 1\n" {
			err = fmt.Errorf("the server says %q", got)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// TestGuests: connections at a host's own address go on wherever their server moves, and
// nobody else's at that address are touched.
func TestGuests(t *testing.T) {
	for _, ipv6 := range []bool{false, true} {
		t.Run(map[bool]string{false: "IPv4", true: "IPv6"}[ipv6], func(t *testing.T) {
			ctx := limit(t, 4*time.Minute)
			home := host(t, "host-a").Address()
			if ipv6 {
				home = host(t, "host-a").Address6()
			}
			const many = 8
			at := netip.AddrPortFrom(home, 7391)
			server := start(ctx, t, "host-a", "$BIN/workload", "memory", "-size", "16MiB", "-echo", ":7391", "-ask", "$ASK")
			clients := dialAll(ctx, t, at, many)
			half := dialHalf(t, at)
			wire := newTap(t, at)
			var first string
			sentAgain := make([]int, many)
			for range 2 {
				for _, to := range []string{"host-b", "host-c", "host-a"} {
					from := server.Host
					var r migrate.Report
					seen := mustServe(t, clients, func() { r = moved(ctx, t, server, to) })
					if t.Failed() {
						t.Fatal(bed.Logs("host-a", "host-b", "host-c"))
					}
					again := wire.judge(from, to)
					for i, c := range clients {
						n, err := c.SentAgain()
						if err != nil {
							t.Fatal(err)
						}
						again += n - sentAgain[i]
						sentAgain[i] = n
					}
					t.Logf("%d requests, the longest stall was %v of a downtime of %.1f ms, %d segments came again", seen.Requests, seen.Longest, r.DowntimeMS, again)
					if again > 0 && seen.Longest < retransmission {
						t.Errorf("%d segments came again", again)
					}
					told := func(f migrate.Finding) bool { return f.Code == migrate.CodeForwarded }
					if !slices.ContainsFunc(r.Warnings, told) {
						t.Errorf("warnings %v", r.Warnings)
					}
					switch to {
					case "host-b":
						first = r.ID
						awaitPassed(ctx, t, first, migrate.PassedOn{Host: "host-a", To: "host-b", Connections: many + 1})
					case "host-c":
						awaitPassed(ctx, t, first, migrate.PassedOn{Host: "host-a", To: "host-c", Connections: many + 1})
						awaitPassed(ctx, t, r.ID)
					case "host-a":
						awaitPassed(ctx, t, first)
						awaitPassed(ctx, t, r.ID)
					}
					mustServe(t, clients, func() { <-time.After(100 * time.Millisecond) })
				}
			}
			for range 2 { // a reset would come after the first
				if _, err := io.WriteString(half, "nobody answers\n"); err != nil {
					t.Error(err)
				}
				<-time.After(100 * time.Millisecond)
			}
			if err := half.Close(); err != nil {
				t.Error(err)
			}
			// Others are served at the same port of that address meanwhile, and the agents need not
			// be there.
			r := moved(ctx, t, server, "host-b")
			other, err := bed.Start(ctx, "host-a", "$BIN/workload", "memory", "-size", "1MiB", "-echo", ":7391", "-ask", "$ASK")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = other.End(context.WithoutCancel(ctx), unix.SIGKILL) }) // in vain where it has ended below
			others := dialAll(ctx, t, at, 3)
			for _, name := range []string{"host-a", "host-b"} {
				agent := host(t, name).Daemon("agent")
				seen := mustServe(t, slices.Concat(clients, others), func() {
					if err := agent.Kill(ctx); err != nil {
						t.Error(err)
					}
					if err := agent.Start(ctx); err != nil {
						t.Error(err)
					}
					agentAnswers(ctx, t, name)
				})
				t.Logf("%d requests while the agent of %s was started again", seen.Requests, name)
			}
			awaitPassed(ctx, t, r.ID, migrate.PassedOn{Host: "host-a", To: "host-b", Connections: many})
			if err := others.End(); err != nil {
				t.Error(err)
			}
			// Some of them end: the others go on.
			if err := clients[:3].End(); err != nil {
				t.Error(err)
			}
			awaitPassed(ctx, t, r.ID, migrate.PassedOn{Host: "host-a", To: "host-b", Connections: many - 3})
			mustServe(t, clients[3:], func() { <-time.After(100 * time.Millisecond) })
			if err := clients[3:].End(); err != nil {
				t.Error(err)
			}
			awaitPassed(ctx, t, r.ID)
			if err := other.End(ctx, unix.SIGKILL); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestGuestsKilled kills agents in moves of a program with connections at a service address and at
// its host's own: both go on.
func TestGuestsKilled(t *testing.T) {
	for _, instant := range instants {
		if instant.source != "promised" { // before that, nothing differs
			continue
		}
		for i, victim := range []string{source, destination} {
			t.Run(instant.point+" "+victim, func(t *testing.T) {
				f := newFaultAt(t, instant.held, instant.point, ":7351")
				clients := dialAll(f.ctx, t, netip.AddrPortFrom(host(t, "host-a").Address(), 7351), 3)
				f.begin()
				mustServe(t, slices.Concat(clients, f.clients), func() {
					f.await("the migration to be held", f.isHeld)
					f.mustBe(instant)
					back := f.kill(victim)
					f.letGo()
					f.await("the "+victim+" to be back", back)
					f.judge([]migrate.State{instant.outcomes[i]})
				})
				if err := slices.Concat(clients, f.clients).End(); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// TestGuestsAsk: a program that has connected from its host's own address goes on, too, also
// where it talks to a program on the host that it comes to, or to itself.
func TestGuestsAsk(t *testing.T) {
	need(t, "python3")
	home := host(t, "host-a").Address().String()
	for name, c := range map[string]struct{ from, to, server string }{
		"another host":    {home, host(t, "client").Address().String(), "client"},
		"the destination": {home, host(t, "host-b").Address().String(), "host-b"},
		"itself":          {home, home, ""},
		"itself at lo":    {"127.0.0.1", "127.0.0.1", ""},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := limit(t, 2*time.Minute)
			const port = 7395
			args := []string{"python3", script(t, "talk.py"), c.from, c.to, fmt.Sprint(port)}
			notes := filepath.Join(t.TempDir(), "notes")
			args = append(args, notes)
			if c.server == "" {
				args = append(args, "everywhere")
			} else {
				start(ctx, t, c.server, "$BIN/workload", "memory", "-size", "1MiB", "-echo", fmt.Sprintf(":%d", port), "-ask", "$ASK")
			}
			k := talker{start(ctx, t, "host-a", append(args, "$ASK")...), notes}
			for range 2 {
				for _, to := range []string{"host-b", "host-c", "host-a"} {
					k.mustGoOn(ctx, t)
					moved(ctx, t, k.Process, to)
					k.mustGoOn(ctx, t)
				}
			}
		})
	}
}
