package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/e2e/testbed"
	"github.com/pagurus-project/pagurus/migrate"
)

// openUDP opens a socket in the outside world, until the test is over. Without a peer it
// listens at the port.
func openUDP(t *testing.T, port int, peer netip.AddrPort) *net.UDPConn {
	t.Helper()
	var conn *net.UDPConn
	err := within(t, "client", func() (err error) {
		if peer.IsValid() {
			conn, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(peer))
		} else {
			conn, err = net.ListenUDP("udp", &net.UDPAddr{Port: port})
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// A datagramClient sends a numbered datagram every now and then, without waiting for
// answers.
type datagramClient struct {
	conn  *net.UDPConn
	sent  int
	early int // how often a later datagram was answered before an earlier one
}

// datagramPause leaves room in the server's buffer for all that is sent while it stands still:
// some 250 small datagrams.
const datagramPause = 4 * time.Millisecond

// during sends until over is closed, and wants each datagram to arrive once and to be
// answered once. Those that come to a new host on a way of their own may overtake others.
func (c *datagramClient) during(over <-chan struct{}) error {
	sent, heard := make(chan int, 1), make(chan error, 1)
	go func() { heard <- c.hear(c.sent, sent) }()
	var err error
	for ended := false; !ended && err == nil; {
		select {
		case <-over:
			ended = true
			sent <- c.sent + 1 // before the last one, which who hears may be waiting for
		case <-time.After(datagramPause):
		}
		c.sent++
		_, err = fmt.Fprintf(c.conn, "datagram %d", c.sent)
	}
	if err != nil {
		_ = c.conn.Close() // ends the other one
	}
	return errors.Join(err, <-heard)
}

// hear takes answers until all that was sent is answered.
func (c *datagramClient) hear(before int, sent <-chan int) error {
	buf := make([]byte, 2000)
	numbers, counts := make(map[int]bool), make(map[int]bool) // ours, and what the server has counted
	last := before
	for until := -1; until < 0 || len(numbers) < until-before; {
		select {
		case until = <-sent:
			continue
		default:
		}
		if err := c.conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			return err
		}
		n, err := c.conn.Read(buf)
		if err != nil {
			return fmt.Errorf("after %d answers: %w", len(numbers), err)
		}
		var number, count int
		if _, err := fmt.Sscanf(string(buf[:n]), "datagram %d %d", &number, &count); err != nil {
			return fmt.Errorf("answer %q: %w", buf[:n], err)
		}
		if numbers[number] || counts[count] || number <= before || count <= before {
			return fmt.Errorf("answer %q twice", buf[:n])
		}
		numbers[number], counts[count] = true, true
		if number < last {
			c.early++
		}
		last = number
	}
	return nil
}

// TestDatagrams: clients that send datagrams without a pause get all answers, each once,
// whatever host their server is on.
func TestDatagrams(t *testing.T) {
	for i, service := range []string{"10.77.0.106/24", "fd77::106/64"} {
		p := netip.MustParsePrefix(service)
		at := netip.AddrPortFrom(p.Addr(), 7351)
		t.Run([]string{"IPv4", "IPv6"}[i], func(t *testing.T) {
			ctx := limit(t, 3*time.Minute)
			addAddress(ctx, t, p, "host-a")
			server := start(ctx, t, "host-a", "$BIN/workload", "memory", "-size", "16MiB", "-datagrams", at.String(), "-ask", "$ASK")
			var clients []*datagramClient
			for range 4 {
				clients = append(clients, &datagramClient{conn: openUDP(t, 0, at)})
			}
			serve := func(f func()) {
				t.Helper()
				over := make(chan struct{})
				var all sync.WaitGroup
				for i, c := range clients {
					all.Go(func() {
						if err := c.during(over); err != nil {
							t.Errorf("client %d: %v", i, err)
						}
					})
				}
				f()
				close(over)
				all.Wait()
				if t.Failed() {
					t.Fatal(bed.Logs("host-a", "host-b"))
				}
				t.Logf("%d datagrams, %d overtaken", clients[0].sent, clients[0].early)
			}
			for range trips {
				for _, to := range []string{"host-b", "host-a"} {
					serve(func() {
						r := moved(ctx, t, server, to)
						if !slices.Equal(r.Addresses, []netip.Prefix{p}) {
							t.Errorf("%v went along, and not %s", r.Addresses, p)
						}
					})
				}
			}
			serve(func() {
				if r, err := bed.Move(ctx, server, "host-b", "--rehearse"); err != nil || r.State != migrate.StateRehearsed {
					t.Errorf("rehearsing: %v, %s, %s", err, r.State, r.Stderr)
				}
			})
		})
	}
}

// TestDatagramsWait: what has come and was not read goes along, with its senders;
// groups and peers do, too. A rehearsal leaves all where it is.
func TestDatagramsWait(t *testing.T) {
	need(t, "python3")
	ctx := limit(t, 3*time.Minute)
	const port = 7361
	p, group := netip.MustParsePrefix("10.77.0.107/24"), netip.MustParseAddr("239.77.0.1")
	addAddress(ctx, t, p, "host-a")
	server := start(ctx, t, "host-a", "python3", script(t, "datagrams.py"), p.Addr().String(), fmt.Sprint(port), group.String(), "$ASK")
	senders := []*net.UDPConn{openUDP(t, 0, netip.AddrPortFrom(p.Addr(), port)), openUDP(t, 0, netip.AddrPortFrom(p.Addr(), port))}
	heard := openUDP(t, 7000, netip.AddrPort{})
	toGroup := openUDP(t, 7001, netip.AddrPort{})
	raw, err := toGroup.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) {
			err = unix.SetsockoptIPMreqn(int(fd), unix.SOL_IP, unix.IP_MULTICAST_IF, &unix.IPMreqn{Address: host(t, "client").Address().As4()})
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	for range trips {
		for _, to := range []string{"host-b", "host-a"} {
			var want strings.Builder
			for i, size := range []int{10, 0, 1400, 5000, 30000, 3} { // some in fragments
				conn := senders[i%2]
				data := []byte(strings.Repeat("x", size))
				if _, err := conn.Write(data); err != nil {
					t.Fatal(err)
				}
				fmt.Fprintf(&want, "%d %d %d\n", conn.LocalAddr().(*net.UDPAddr).Port, size, size*'x')
			}
			if r, err := bed.Move(ctx, server, to, "--rehearse"); err != nil || r.State != migrate.StateRehearsed {
				t.Fatalf("rehearsing: %v, %s, %s", err, r.State, r.Stderr)
			}
			moved(ctx, t, server, to)
			// Of empty ones only the first look tells, which was the rehearsal's. Those that the
			// host before has sent on are late.
			if got := order(t, server, port+1); sorted(got) != sorted(want.String()) && sorted(got) != sorted(without(want.String(), " 0 0\n")) {
				t.Fatalf("it has read\n%sinstead of\n%s%s", got, want.String(), bed.Logs("host-a", "host-b"))
			}
			if _, err := toGroup.WriteToUDPAddrPort([]byte("to all"), netip.AddrPortFrom(group, port+2)); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 2000)
			if err := heard.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
				t.Fatal(err)
			}
			n, from, err := heard.ReadFromUDPAddrPort(buf)
			if err != nil || string(buf[:n]) != "to all" || netip.AddrPortFrom(from.Addr().Unmap(), from.Port()) != netip.AddrPortFrom(p.Addr(), port+3) {
				t.Fatalf("from the group through %s: %q from %v, %v", to, buf[:n], from, err)
			}
		}
	}
}

// order has the server read, at its host's own address.
func order(t *testing.T, server *testbed.Process, port uint16) string {
	t.Helper()
	conn := openUDP(t, 0, netip.AddrPortFrom(host(t, server.Host).Address(), port))
	if _, err := conn.Write([]byte("read")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 1<<16)
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	n, err := conn.Read(buf)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	return string(buf[:n])
}

// sorted sorts lines.
func sorted(lines string) string {
	return strings.Join(slices.Sorted(strings.Lines(lines)), "")
}

// without leaves lines out that end so.
func without(lines, end string) string {
	var kept strings.Builder
	for line := range strings.Lines(lines) {
		if !strings.HasSuffix(line, end) {
			kept.WriteString(line)
		}
	}
	return kept.String()
}
