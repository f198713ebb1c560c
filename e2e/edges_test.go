package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/e2e/testbed"
	"github.com/pagurus-project/pagurus/migrate"
)

// An edge is what a client does around the freeze, in three steps.
type edge struct {
	name                  string
	before, during, after func(*talk) error
}

// A talk is one client's, with the process of a fault.
type talk struct {
	f *fault
	*net.TCPConn
	lines *bufio.Reader
	done  chan error // of what goes on in the background
}

// edgeAt is where it connects to.
var edgeAt = netip.AddrPortFrom(alongFault.Addr(), 7351)

// dial connects once more; set may set options of the socket first.
func (k *talk) dial(set func(fd int) error) error {
	return within(k.f.t, "client", func() error {
		d := net.Dialer{Timeout: 20 * time.Second, Control: func(_, _ string, c syscall.RawConn) error {
			var err error
			if set != nil {
				err = errors.Join(c.Control(func(fd uintptr) { err = set(int(fd)) }), err)
			}
			return err
		}}
		conn, err := d.DialContext(k.f.ctx, "tcp", edgeAt.String())
		if err != nil {
			return err
		}
		k.TCPConn, k.lines = conn.(*net.TCPConn), bufio.NewReader(conn)
		return conn.SetDeadline(time.Now().Add(time.Minute))
	})
}

// Lines of a size that fills all queues long before all are answered.
const (
	manyLines = 300
	lineBytes = 32 << 10
)

func longLine(n int) string { return strings.Repeat(string(rune('a'+n%26)), lineBytes) }

// writeMany writes all lines in the background, and ends that direction.
func (k *talk) writeMany() error {
	k.done = make(chan error, 1)
	go func() {
		for n := 1; n <= manyLines; n++ {
			if _, err := fmt.Fprintln(k, longLine(n)); err != nil {
				k.done <- err
				return
			}
		}
		k.done <- k.CloseWrite()
	}()
	// Nobody reads, so that all queues are full soon, and stay so.
	for filled, before := 0, -1; filled != before; {
		before = filled
		<-time.After(50 * time.Millisecond)
		raw, err := k.SyscallConn()
		if err != nil {
			return err
		}
		if err := raw.Control(func(fd uintptr) { filled, _ = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) }); err != nil {
			return err
		}
	}
	return nil
}

// readMany reads all answers, and the end.
func (k *talk) readMany() error {
	for n := 1; n <= manyLines; n++ {
		got, err := k.lines.ReadString('\n')
		if want := fmt.Sprintf("%s %d\n", longLine(n), n); err != nil || got != want {
			return fmt.Errorf("answer %d has %d bytes, %.20q..., and is wrong: %w", n, len(got), got, err)
		}
	}
	return errors.Join(k.readEnd(), <-k.done)
}

func (k *talk) readEnd() error {
	if rest, err := io.ReadAll(k.lines); err != nil || len(rest) > 0 {
		return fmt.Errorf("%.20q instead of the end: %w", rest, err)
	}
	return nil
}

func (k *talk) ask(text string, n int) error {
	if _, err := fmt.Fprintln(k, text); err != nil {
		return err
	}
	return k.hear(text, n)
}

func (k *talk) hear(text string, n int) error {
	got, err := k.lines.ReadString('\n')
	if want := fmt.Sprintf("%s %d\n", text, n); err != nil || got != want {
		return fmt.Errorf("%q instead of %q: %w", got, want, err)
	}
	return nil
}

// sentAgain is how many segments the client has sent again.
func (k *talk) sentAgain() int {
	n, err := (&testbed.Client{Conn: k.TCPConn}).SentAgain()
	if err != nil {
		k.f.t.Error(err)
	}
	return n
}

var edges = []edge{
	{
		name:   "all queues are full, and the window is closed",
		before: func(k *talk) error { return errors.Join(k.dial(nil), k.writeMany()) },
		after:  (*talk).readMany,
	},
	{
		name: "small windows",
		before: func(k *talk) error {
			small := func(fd int) error {
				return errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 8<<10), unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_MAXSEG, 536))
			}
			return errors.Join(k.dial(small), k.writeMany())
		},
		after: (*talk).readMany,
	},
	{
		name:   "the client has said all before",
		before: func(k *talk) error { return errors.Join(k.dial(nil), k.ask("one", 1), k.CloseWrite()) },
		after:  (*talk).readEnd,
	},
	{
		name:   "the server has said all before",
		before: func(k *talk) error { return errors.Join(k.dial(nil), k.ask("enough", 1), k.readEnd()) },
		during: func(k *talk) error { _, err := io.WriteString(k, "more"); return err },
		after: func(k *talk) error {
			_, err := io.WriteString(k, "and more")
			return errors.Join(err, k.CloseWrite())
		},
	},
	{
		name:   "the client asks in the freeze",
		before: func(k *talk) error { return errors.Join(k.dial(nil), k.ask("one", 1)) },
		during: func(k *talk) error { _, err := io.WriteString(k, "two\n"); return err },
		after: func(k *talk) error {
			return errors.Join(k.hear("two", 2), k.ask("three", 3), k.CloseWrite(), k.readEnd())
		},
	},
	{
		name:   "the client says all in the freeze",
		before: func(k *talk) error { return errors.Join(k.dial(nil), k.ask("one", 1)) },
		during: func(k *talk) error { _, err := io.WriteString(k, "two\n"); return errors.Join(err, k.CloseWrite()) },
		after:  func(k *talk) error { return errors.Join(k.hear("two", 2), k.readEnd()) },
	},
	{
		name:   "the client breaks off in the freeze",
		before: func(k *talk) error { return errors.Join(k.dial(nil), k.ask("one", 1)) },
		during: func(k *talk) error { return errors.Join(k.SetLinger(0), k.Close()) },
		after:  func(k *talk) error { return errors.Join(k.dial(nil), k.ask("one", 1), k.CloseWrite(), k.readEnd()) },
	},
	{
		name: "the client connects in the freeze",
		during: func(k *talk) error {
			k.done = make(chan error, 1)
			go func() { k.done <- k.dial(nil) }()
			return nil
		},
		after: func(k *talk) error {
			if err := <-k.done; err != nil {
				return err
			}
			if n := k.sentAgain(); n > 0 {
				k.f.t.Logf("it has sent %d segments again", n)
			}
			return errors.Join(k.ask("one", 1), k.CloseWrite(), k.readEnd())
		},
	},
	{
		name: "the client looks in the freeze whether the server is there",
		before: func(k *talk) error {
			impatient := func(fd int) error {
				return errors.Join(
					unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1),
					unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_KEEPIDLE, 1),
					unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_KEEPINTVL, 1),
					unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_KEEPCNT, 4))
			}
			return errors.Join(k.dial(impatient), k.ask("one", 1))
		},
		during: func(*talk) error {
			<-time.After(2500 * time.Millisecond) // two of its four tries
			return nil
		},
		after: func(k *talk) error {
			<-time.After(3 * time.Second) // more than the rest of them
			return errors.Join(k.ask("two", 2), k.CloseWrite(), k.readEnd())
		},
	},
	{
		name: "the way from the destination has another MTU",
		before: func(k *talk) error {
			k.f.t.Cleanup(func() { setMTU(k.f.t, "host-b", 0) })
			setMTU(k.f.t, "host-b", 1300)
			return errors.Join(k.dial(nil), k.writeMany())
		},
		after: (*talk).readMany,
	},
}

// setMTU bounds what a host sends to others, by its routes: a pair of virtual devices would also
// take nothing in that is longer than its own MTU, where network cards do, and what the client
// sends would be lost without a word.
func setMTU(t *testing.T, name string, mtu int) {
	t.Helper()
	if err := within(t, name, func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		routes, err := netlink.RouteList(link, netlink.FAMILY_V4)
		for i := range routes {
			routes[i].MTU = mtu
			err = errors.Join(err, netlink.RouteReplace(&routes[i]))
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// TestEdges: whatever a client does just before, in or just after the freeze, it is
// served as if nothing had happened, and nobody is reset: when the server has moved, and
// when it could not.
func TestEdges(t *testing.T) {
	for _, e := range edges {
		t.Run(e.name, func(t *testing.T) { e.move(t, "host-a", "promised", migrate.StateDone) })
		t.Run(e.name+", aborted", func(t *testing.T) { e.move(t, "host-b", "built", migrate.StateAborted) })
	}
}

// move has it happen while an agent is held at a point of a migration.
func (e *edge) move(t *testing.T, held, point string, outcome migrate.State) {
	f := newFault(t, held, point)
	k := &talk{f: f}
	t.Cleanup(func() {
		if k.TCPConn != nil {
			_ = k.Close() // where it has not come to that
		}
	})
	wire := newTap(t, edgeAt)
	step := func(what string, do func(*talk) error) {
		t.Helper()
		if do == nil {
			return
		}
		if err := do(k); err != nil {
			t.Fatalf("%s the freeze: %v%s", what, err, bed.Logs("host-a", "host-b"))
		}
	}
	step("before", e.before)
	f.begin()
	f.await("the migration to be held", f.isHeld)
	step("in", e.during)
	if outcome == migrate.StateAborted {
		cancelled := make(chan error, 1)
		go func() { cancelled <- f.command("cancel", f.id).Run() }() // which waits for both sides
		f.await("the process to go on", func() bool { return !f.frozen() })
		defer func() {
			if err := <-cancelled; err != nil {
				t.Errorf("cancelling: %v", err)
			}
		}()
	}
	f.letGo()
	f.judge([]migrate.State{outcome})
	step("after", e.after)
	if err := f.clients.End(); err != nil {
		t.Error(err)
	}
	wire.judge("host-a", f.process.Host)
}

// TestClosedBefore: what a program has said before it has closed a connection arrives,
// however slow its client is: the move waits for that.
func TestClosedBefore(t *testing.T) {
	need(t, "python3")
	const bytes = 300_000
	ctx := limit(t, time.Minute)
	p := netip.MustParsePrefix("10.77.0.111/24")
	at := netip.AddrPortFrom(p.Addr(), 7344)
	addAddress(ctx, t, p, "host-a")
	server := start(ctx, t, "host-a", "python3", script(t, "leave.py"), at.Addr().String(), fmt.Sprint(at.Port()), fmt.Sprint(bytes), "$ASK")
	for _, to := range []string{"host-b", "host-a"} {
		var conn net.Conn
		if err := within(t, "client", func() (err error) {
			d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
				return c.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 8<<10) })
			}}
			conn, err = d.DialContext(ctx, "tcp", at.String())
			return err
		}); err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		read := make(chan error, 1)
		go func() {
			<-time.After(1500 * time.Millisecond)
			n, err := io.Copy(io.Discard, conn)
			if err == nil && n != bytes {
				err = fmt.Errorf("%d bytes instead of %d", n, bytes)
			}
			read <- err
		}()
		r := moved(ctx, t, server, to)
		if err := <-read; err != nil {
			t.Error(err)
		}
		if r.TotalMS < 1000 {
			t.Errorf("the move has not waited: %.0f ms", r.TotalMS)
		}
	}
}

// TestManyConnections moves a thousand.
func TestManyConnections(t *testing.T) {
	const many = 1000
	ctx := limit(t, 3*time.Minute)
	p := netip.MustParsePrefix("10.77.0.106/24")
	at := netip.AddrPortFrom(p.Addr(), 7343)
	addAddress(ctx, t, p, "host-a")
	raiseDescriptors(t, 4*many)
	server := start(ctx, t, "host-a", "sh", "-c", `ulimit -n 4096 && exec "$@"`, "sh", "$BIN/workload", "memory", "-size", "16MiB", "-echo", at.String(), "-ask", "$ASK")
	clients := dialAll(ctx, t, at, many)
	askAll := func() {
		t.Helper()
		for i, c := range clients {
			if err := c.Ask(); err != nil {
				t.Fatalf("client %d: %v", i, err)
			}
		}
	}
	askAll()
	for _, to := range []string{"host-b", "host-a"} {
		moved(ctx, t, server, to)
		askAll()
	}
	if err := clients.End(); err != nil {
		t.Error(err)
	}
}

// raiseDescriptors lets this process have n of them.
func raiseDescriptors(t *testing.T, n uint64) {
	t.Helper()
	var limit unix.Rlimit
	err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit)
	if err == nil && limit.Cur < n {
		limit.Cur = min(n, limit.Max)
		err = unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)
	}
	if err != nil {
		t.Fatal(err)
	}
}
