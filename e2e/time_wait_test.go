package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// strayFor is more than the time for which resets do not leave a host to which addresses have come.
const strayFor = 3 * time.Second

// control calls f with the descriptor of a connection.
func control(t *testing.T, c net.Conn, f func(fd int) error) {
	t.Helper()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var failed error
	if err := errors.Join(raw.Control(func(fd uintptr) { failed = f(int(fd)) }), failed); err != nil {
		t.Fatal(err)
	}
}

// TestClosedFirst: a server closes its connections first, and moves right after. What its clients send again,
// and their ends, which come when the source knows nothing of them any more, are acknowledged.
func TestClosedFirst(t *testing.T) {
	need(t, "python3")
	for i, service := range []string{"10.77.0.118/24", "fd77::118/64"} {
		t.Run([]string{"IPv4", "IPv6"}[i], func(t *testing.T) {
			ctx := limit(t, 3*time.Minute)
			p := netip.MustParsePrefix(service)
			at := netip.AddrPortFrom(p.Addr(), 7391)
			addAddress(ctx, t, p, "host-a")
			server := start(ctx, t, "host-a", "python3", script(t, "first.py"), at.Addr().String(), fmt.Sprint(at.Port()), "$ASK")
			for _, to := range []string{"host-b", "host-a"} {
				wire := newTap(t, at)
				var half, ended []net.Conn
				for i := range 20 {
					c := dialOnce(t, at)
					if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
						t.Fatal(err)
					}
					if _, err := io.WriteString(c, "hello\n"); err != nil {
						t.Fatal(err)
					}
					if got, err := io.ReadAll(c); err != nil || string(got) != "hello\n" {
						t.Fatalf("client %d hears %q, %v", i, got, err)
					}
					if i%2 == 0 {
						half = append(half, c)
						continue
					}
					ended = append(ended, c)
					// It does not hear the acknowledgement of its end, and sends that again and again.
					control(t, c, func(fd int) error {
						drop := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K}}
						return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &drop[0]})
					})
					if err := c.(*net.TCPConn).CloseWrite(); err != nil {
						t.Fatal(err)
					}
				}
				r := moved(ctx, t, server, to)
				if strings.Contains(r.Reason, "remembered") {
					t.Errorf("the move has lost something: %s", r.Reason)
				}
				<-time.After(strayFor)
				for _, c := range half {
					if err := c.(*net.TCPConn).CloseWrite(); err != nil {
						t.Fatal(err)
					}
				}
				for _, c := range ended {
					control(t, c, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0) })
				}
				for i, c := range append(half, ended...) {
					const closed = 7 // TCP_CLOSE (include/net/tcp_states.h)
					var state uint8
					for deadline := time.Now().Add(30 * time.Second); state != closed; <-time.After(10 * time.Millisecond) {
						control(t, c, func(fd int) error {
							info, err := unix.GetsockoptTCPInfo(fd, unix.SOL_TCP, unix.TCP_INFO)
							if err == nil {
								state = info.State
							}
							return err
						})
						if time.Now().After(deadline) {
							t.Fatalf("client %d is in state %d, as nobody acknowledges its end%s", i, state, bed.Logs("host-a", "host-b"))
						}
					}
				}
				wire.judge(map[string]string{"host-a": "host-b", "host-b": "host-a"}[to], to)
			}
		})
	}
}
