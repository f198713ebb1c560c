package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pagurus-project/pagurus/e2e/testbed"
)

// A server is a program that everybody knows.
type server struct {
	name, needs string // needs: the program's file
	// args start it; $AT is the address, $PORT the port, and $FILES the directory in which
	// files are made, with the same replaced in them; $TESTDATA is what lies beside the
	// tests, and $BIN the directory of programs.
	args  []string
	files map[string]string
	// load has clients do something as long as the load goes on.
	load func(*load)
	// after looks at the server when all of them have ended.
	after func(*load) error
}

// TestServers moves servers under load from clients on another host, ten times in a row.
// Clients check every answer.
func TestServers(t *testing.T) {
	for i, s := range []server{redis, memcached, nginx, mosquitto, iperf, node, asyncio, goServer, dnsmasq} {
		t.Run(s.name, func(t *testing.T) {
			need(t, s.needs)
			ctx := limit(t, 3*time.Minute)
			p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, 0, byte(120 + i)}), 24)
			addAddress(ctx, t, p, "host-a")
			l := &load{t: t, ctx: ctx, at: netip.AddrPortFrom(p.Addr(), 7400), over: make(chan struct{})}
			process := l.start(s)
			t.Cleanup(func() { l.stop(ctx) }) // of a test that has failed: what they say then is said in time
			s.load(l)
			if err := testbed.Await(ctx, "all clients to have been served", func() (bool, error) { return l.served() || t.Failed(), nil }); err != nil {
				t.Fatal(err)
			}
			for range trips {
				for _, to := range []string{"host-b", "host-a"} {
					l.forget()
					moved(ctx, t, process, to)
					if t.Failed() {
						t.Fatal(bed.Logs("host-a", "host-b"))
					}
					t.Logf("the longest stall so far was %v", l.longest())
				}
			}
			l.end()
			if s.after != nil {
				if err := s.after(l); err != nil {
					t.Error(err)
				}
			}
			if t.Failed() {
				t.Log(process.Output())
			}
		})
	}
}

// A load is what clients do to a server.
type load struct {
	t       *testing.T
	ctx     context.Context
	at      netip.AddrPort
	dir     string // of the server's files
	over    chan struct{}
	stopped sync.Once // which closes it
	running sync.WaitGroup

	mu      sync.Mutex
	clients []*client
}

// A client is one of a load's.
type client struct {
	*load
	name    string
	answers int
	stall   time.Duration // the longest
}

// start starts a server.
func (l *load) start(s server) *testbed.Process {
	l.t.Helper()
	l.dir = l.t.TempDir()
	replace := strings.NewReplacer("$AT", l.at.Addr().String(), "$PORT", fmt.Sprint(l.at.Port()), "$FILES", l.dir, "$TESTDATA", filepath.Dir(script(l.t, "-")))
	for name, content := range s.files {
		path := filepath.Join(l.dir, name)
		err := os.MkdirAll(filepath.Dir(path), 0o777)
		if err == nil {
			err = os.WriteFile(path, []byte(replace.Replace(content)), 0o666)
		}
		if err != nil {
			l.t.Fatal(err)
		}
	}
	// The path by which copies of a process are known becomes its name: not all servers
	// leave room for it elsewhere.
	args := []string{"bash", "-c", `echo ready; exec -a "$0" "$@"`, "$ASK"}
	for _, a := range s.args {
		args = append(args, replace.Replace(a))
	}
	p := start(l.ctx, l.t, "host-a", args...)
	err := testbed.Await(l.ctx, "the server to listen", func() (bool, error) {
		conn, err := l.dial()
		if err != nil {
			return false, nil
		}
		return true, conn.Close()
	})
	if err != nil {
		l.t.Fatalf("%v: %s", err, p.Output())
	}
	return p
}

// dial connects to the server. A client that waits in vain ends at some time.
func (l *load) dial() (conn net.Conn, err error) {
	err = within(l.t, "client", func() error {
		conn, err = net.DialTimeout("tcp", l.at.String(), 10*time.Second)
		return err
	})
	if err == nil {
		err = conn.SetDeadline(time.Now().Add(2 * time.Minute))
	}
	return conn, err
}

// client starts a client, and is done when f is. Whatever f returns fails the test.
func (l *load) client(name string, f func(*client) error) {
	c := &client{load: l, name: name}
	l.mu.Lock()
	l.clients = append(l.clients, c)
	l.mu.Unlock()
	l.running.Go(func() {
		if err := f(c); err != nil {
			l.t.Errorf("%s, after %d answers: %v", name, c.answers, err)
		}
	})
}

// connected starts a client that has a connection of its own as long as it runs.
func (l *load) connected(name string, f func(*client, net.Conn) error) {
	l.client(name, func(c *client) error {
		conn, err := l.dial()
		if err != nil {
			return err
		}
		defer conn.Close()
		return f(c, conn)
	})
}

// numbered has a client send numbers, one after the other with a pause, and "end" when
// the load is over.
func (c *client) numbered(pause time.Duration, send func(text string) error) error {
	for n := 1; ; n++ {
		last := !c.goesOn()
		text := fmt.Sprint(n)
		if last {
			text = "end"
		}
		begun := time.Now()
		if err := send(text); err != nil || last {
			return err
		}
		c.answered(begun)
		<-time.After(pause)
	}
}

// goesOn reports whether the load does.
func (l *load) goesOn() bool {
	select {
	case <-l.over:
		return false
	case <-l.ctx.Done():
		return false
	default:
		return true
	}
}

// answered notes that the client has waited since then for something that is right.
func (c *client) answered(since time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answers++
	c.stall = max(c.stall, time.Since(since))
}

func (l *load) served() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.clients {
		if c.answers == 0 {
			return false
		}
	}
	return true
}

// forget forgets stalls, longest tells the longest since.
func (l *load) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.clients {
		c.stall = 0
	}
}

func (l *load) longest() (longest time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.clients {
		longest = max(longest, c.stall)
	}
	return longest
}

// stop asks all clients to end, and reports whether they have.
func (l *load) stop(ctx context.Context) bool {
	l.stopped.Do(func() { close(l.over) })
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.running.Wait()
	}()
	select {
	case <-done:
		return true
	case <-ctx.Done():
		return false
	}
}

// end has all clients come to their end.
func (l *load) end() {
	l.t.Helper()
	if !l.stop(l.ctx) {
		l.t.Fatal("some clients do not come to their end")
	}
	total := 0
	for _, c := range l.clients {
		total += c.answers
		if c.answers == 0 {
			l.t.Errorf("%s was never answered", c.name)
		}
	}
	l.t.Logf("%d clients had %d answers", len(l.clients), total)
}

// errEnded says that the server has ended a connection that it should have kept.
var errEnded = errors.New("the server has ended the connection")
