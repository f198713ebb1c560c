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
)

// A caller asks a server (count.py) over one connection, again and again, and checks
// every answer.
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
	if err := c.conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
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

// TestConnections: clients that ask without a pause get every answer, whatever host their
// server is on, and do not notice.
func TestConnections(t *testing.T) {
	need(t, "python3")
	const clients = 10
	for _, service := range []string{"10.77.0.104/24", "fd77::104/64"} {
		t.Run(service, func(t *testing.T) {
			ctx := limit(t, 3*time.Minute)
			p := netip.MustParsePrefix(service)
			addAddress(ctx, t, p, "host-a")
			server := start(ctx, t, "host-a", "python3", script(t, "count.py"), p.Addr().String(), "7341", "$ASK")
			var callers []*caller
			for range clients {
				callers = append(callers, call(t, "client", netip.AddrPortFrom(p.Addr(), 7341)))
			}
			for range trips {
				for _, to := range []string{"host-b", "host-a"} {
					moving := make(chan struct{})
					var asking sync.WaitGroup
					for i, c := range callers {
						asking.Go(func() {
							for stop := false; !stop; {
								select {
								case <-moving:
									stop = true // once more
								default:
								}
								if err := c.ask(); err != nil {
									t.Errorf("client %d: %v", i, err)
									return
								}
								<-time.After(time.Millisecond)
							}
						})
					}
					r := moved(ctx, t, server, to)
					close(moving)
					asking.Wait()
					if t.Failed() {
						t.Fatal(bed.Logs("host-a", "host-b"))
					}
					if !slices.Equal(r.Addresses, []netip.Prefix{p}) {
						t.Errorf("%v went along, and not %s", r.Addresses, p)
					}
					var longest time.Duration
					for i, c := range callers {
						longest = max(longest, c.longest)
						c.longest = 0
						if n := c.retransmissions(t); n > 0 {
							t.Logf("client %d has sent %d segments again", i, n)
						}
					}
					t.Logf("the longest stall was %v", longest)
					mustBeAt(ctx, t, p, to)
				}
			}
			for i, c := range callers {
				if err := c.end(); err != nil {
					t.Errorf("client %d: %v", i, err)
				}
			}
		})
	}
}
