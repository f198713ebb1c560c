package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate"
)

// A caller asks a server that echoes and counts, over one connection, again and again, and
// checks every answer.
type caller struct {
	conn    *net.TCPConn
	answers *bufio.Reader
	asked   int
	longest time.Duration // that it waited for an answer
}

// call connects from a host.
func call(t *testing.T, from string, to netip.AddrPort) *caller {
	t.Helper()
	c := &caller{}
	if err := within(t, from, func() error {
		conn, err := net.DialTimeout("tcp", to.String(), 5*time.Second)
		if err == nil {
			c.conn = conn.(*net.TCPConn)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.conn.Close() })
	c.answers = bufio.NewReader(c.conn)
	return c
}

// ask asks once.
func (c *caller) ask() error {
	c.asked++
	if err := c.conn.SetDeadline(time.Now().Add(40 * time.Second)); err != nil {
		return err
	}
	begun := time.Now()
	if _, err := fmt.Fprintf(c.conn, "line %d\n", c.asked); err != nil {
		return fmt.Errorf("asking for the %d. time: %w", c.asked, err)
	}
	answer, err := c.answers.ReadString('\n')
	if want := fmt.Sprintf("line %d %d\n", c.asked, c.asked); err != nil || answer != want {
		return fmt.Errorf("after %v: %q instead of %q: %w", time.Since(begun), answer, want, err)
	}
	c.longest = max(c.longest, time.Since(begun))
	return nil
}

// retransmissions are the segments that the caller's side has sent again.
func (c *caller) retransmissions(t *testing.T) uint32 {
	t.Helper()
	raw, err := c.conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var info *unix.TCPInfo
	if controlErr := raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.SOL_TCP, unix.TCP_INFO) }); controlErr != nil || err != nil {
		t.Fatal(controlErr, err)
	}
	return info.Total_retrans
}

// end ends the connection, and waits for the server's end.
func (c *caller) end() error {
	if err := c.conn.CloseWrite(); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, c.answers)
	return err
}

// callers ask as long as something goes on, each about once a millisecond.
type callers []*caller

func callAll(t *testing.T, from string, to netip.AddrPort, n int) callers {
	t.Helper()
	var all callers
	for range n {
		all = append(all, call(t, from, to))
	}
	return all
}

// during has all of them ask while f goes on, and once more afterwards, and returns how
// long one waited at most.
func (all callers) during(t *testing.T, f func()) (longest time.Duration) {
	t.Helper()
	over := make(chan struct{})
	var asking sync.WaitGroup
	for i, c := range all {
		c.longest = 0
		asking.Go(func() {
			for last := false; !last; {
				select {
				case <-over:
					last = true
				case <-time.After(time.Millisecond):
				}
				if err := c.ask(); err != nil {
					t.Errorf("client %d: %v", i, err)
					return
				}
			}
		})
	}
	func() {
		defer asking.Wait()
		defer close(over) // f may end the test
		f()
	}()
	for _, c := range all {
		longest = max(longest, c.longest)
	}
	return longest
}

func (all callers) end(t *testing.T) {
	t.Helper()
	for i, c := range all {
		if err := c.end(); err != nil {
			t.Errorf("client %d: %v", i, err)
		}
	}
}

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
				clients := callAll(t, "client", at, 10)
				for range trips {
					for _, to := range []string{"host-b", "host-a"} {
						var r migrate.Report
						longest := clients.during(t, func() { r = moved(ctx, t, server, to) })
						if t.Failed() {
							t.Fatal(bed.Logs("host-a", "host-b"))
						}
						t.Logf("the longest stall was %v", longest)
						if !slices.Equal(r.Addresses, []netip.Prefix{p}) {
							t.Errorf("%v went along, and not %s", r.Addresses, p)
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
				t.Logf("the longest stall in a rehearsal was %v", clients.during(t, rehearsal))
				for i, c := range clients {
					if n := c.retransmissions(t); n > 0 {
						t.Logf("client %d has sent %d segments again", i, n)
					}
				}
				clients.end(t)
			})
		}
	}
}
