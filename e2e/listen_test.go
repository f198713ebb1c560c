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
)

// ask connects from one host to an address, sends a line, returns the answer and
// waits for the end of the connection.
func ask(t *testing.T, from string, to netip.AddrPort) string {
	t.Helper()
	var answer string
	if err := within(t, from, func() error {
		conn, err := net.DialTimeout("tcp", to.String(), 5*time.Second)
		if err != nil {
			return err
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			return err
		}
		if _, err := io.WriteString(conn, "next\n"); err != nil {
			return err
		}
		r := bufio.NewReader(conn)
		if answer, err = r.ReadString('\n'); err != nil {
			return err
		}
		// The end of the connection is this side's, and the server has closed its socket
		// when it has gone the other way, too: otherwise that would be in the way of a move.
		if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, r)
		return err
	}); err != nil {
		t.Fatalf("asking %v from %s: %v", to, from, err)
	}
	return strings.TrimSpace(answer)
}

// TestListeners moves programs that listen, and connects to them where they are.
// What they are asked for in the meantime shows that they are the same ones.
func TestListeners(t *testing.T) {
	t.Run("python", func(t *testing.T) {
		need(t, "python3")
		ctx := limit(t, 3*time.Minute)
		const port = 7301
		p := start(ctx, t, "host-a", "python3", script(t, "listen.py"), fmt.Sprint(port), "$ASK")
		number := 0
		next := func(port uint16, six bool) {
			t.Helper()
			h := host(t, p.Host)
			a := h.Address()
			if six {
				a = h.Address6()
			}
			number++
			if got, want := ask(t, "client", netip.AddrPortFrom(a, port)), fmt.Sprintf("%d (77, 1, 2)", number); got != want && !six {
				t.Errorf("on %s: %q instead of %q", p.Host, got, want)
			} else if six && !strings.HasPrefix(got, fmt.Sprint(number, " ")) {
				t.Errorf("on %s: %q instead of number %d", p.Host, got, number)
			}
		}
		for range trips {
			for _, to := range []string{"host-b", "host-a"} {
				next(port, false)
				next(port+1, true)
				moved(ctx, t, p, to)
				next(port, false)
				next(port+1, true)
			}
		}
		if got := ask(t, "client", netip.AddrPortFrom(host(t, p.Host).Address(), port+2)); !strings.HasPrefix(got, fmt.Sprint(number+1, " ")) {
			t.Errorf("the socket that was bound and listens by now: %q", got)
		}
	})
	// Programs in Go listen by MPTCP.
	t.Run("go", func(t *testing.T) {
		ctx := limit(t, 3*time.Minute)
		p := start(ctx, t, "host-a", "$BIN/workload", "listen", "-port", "7311", "-ask", "$ASK")
		number := 0
		for range trips {
			for _, to := range []string{"host-b", "host-a"} {
				for range 2 {
					number++
					if got := ask(t, "client", netip.AddrPortFrom(host(t, p.Host).Address(), 7311)); got != fmt.Sprint(number) {
						t.Errorf("on %s: %q instead of %d", p.Host, got, number)
					}
					number++
					if got := ask(t, "client", netip.AddrPortFrom(host(t, p.Host).Address6(), 7311)); got != fmt.Sprint(number) {
						t.Errorf("on %s: %q instead of %d", p.Host, got, number)
					}
				}
				moved(ctx, t, p, to)
			}
		}
		content(ctx, t, p)
	})
}
