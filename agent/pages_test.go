package agent

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"

	"github.com/pagurus-project/pagurus/migrate/wire"
	migratev1 "github.com/pagurus-project/pagurus/proto/migrate/v1"
	"github.com/pagurus-project/pagurus/trust"
)

// dialPages connects to a page listener as anybody.
func (m *move) dialPages(role trust.Role, name string) net.Conn {
	m.t.Helper()
	creds := m.authority.Credentials(m.t, role, name)
	conn, err := tls.Dial("tcp", m.page, creds.Client(trust.AllowRoles(trust.RoleAgent)))
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { conn.Close() })
	return conn
}

// mustBeClosed fails unless the other end hangs up without a word.
func mustBeClosed(t *testing.T, conn net.Conn) {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	n, err := conn.Read(make([]byte, 1))
	if n > 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read %d bytes, %v", n, err)
	}
}

// TestPageConnection: only the source that the coordinator has named gets in,
// with the token, once; and nobody else spoils it for it.
func TestPageConnection(t *testing.T) {
	m := newCluster(t, func(t *Timing) { t.Greeting /= 50 }).newMove("m1")
	m.reserve()
	right := wire.Hello{Migration: "m1", Epoch: 5, Token: m.token}
	for _, tt := range []struct {
		name   string
		change func(*wire.Hello)
		host   string
	}{
		{"token", func(h *wire.Hello) { h.Token = bytes.Repeat([]byte{8}, 32) }, "host-a"},
		{"short token", func(h *wire.Hello) { h.Token = m.token[:31] }, "host-a"},
		{"epoch before", func(h *wire.Hello) { h.Epoch = 4 }, "host-a"},
		{"epoch after", func(h *wire.Hello) { h.Epoch = 6 }, "host-a"},
		{"migration", func(h *wire.Hello) { h.Migration = "m2" }, "host-a"},
		{"host", func(*wire.Hello) {}, "host-c"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			hello := right
			tt.change(&hello)
			conn := m.dialPages(trust.RoleAgent, tt.host)
			if err := wire.WriteHello(conn, hello); err != nil {
				t.Fatal(err)
			}
			mustBeClosed(t, conn)
		})
	}
	t.Run("role", func(t *testing.T) {
		conn := m.dialPages(trust.RoleOperator, "anna")
		_ = wire.WriteHello(conn, right) // the other end may have hung up by then
		mustBeClosed(t, conn)
	})
	t.Run("silence", func(t *testing.T) { mustBeClosed(t, m.dialPages(trust.RoleAgent, "host-a")) })
	t.Run("no TLS", func(t *testing.T) {
		conn, err := net.Dial("tcp", m.page)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Write([]byte("GET / HTTP/1.0\r\n\r\n")); err != nil {
			t.Fatal(err)
		}
		if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error("the connection stays open")
		}
	})
	// The reservation is as good as before.
	g := m.b.gate("prepare")
	m.start()
	g.reach(t)
	second := m.dialPages(trust.RoleAgent, "host-a")
	if err := wire.WriteHello(second, right); err != nil {
		t.Fatal(err)
	}
	mustBeClosed(t, second)
	close(g.open)
	m.awaitPromised()
	m.commit()
	m.dispose()
	m.mustRunAt(m.b)
	m.forget()
}

func TestLimitSilence(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := limitSilence(conn); err != nil {
		t.Fatal(err)
	}
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) {
		ms, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT)
		if err != nil || time.Duration(ms)*time.Millisecond != pageSilence {
			t.Errorf("the kernel waits for %d ms, %v", ms, err)
		}
	}); err != nil {
		t.Fatal(err)
	}
	ours, theirs := net.Pipe()
	defer ours.Close()
	defer theirs.Close()
	if err := limitSilence(ours); err == nil {
		t.Error("a pipe has been limited")
	}
}

// TestOrdersComeFromCoordinators alone.
func TestOrdersComeFromCoordinators(t *testing.T) {
	c := newCluster(t)
	for _, role := range []trust.Role{trust.RoleAgent, trust.RoleOperator, trust.RoleViewer} {
		creds := c.authority.Credentials(t, role, "host-c")
		conn, err := grpc.NewClient("passthrough:///"+c.a.agent.GRPCAddress(),
			grpc.WithTransportCredentials(credentials.NewTLS(creds.Client(trust.AllowRoles(trust.RoleAgent)))))
		if err != nil {
			t.Fatal(err)
		}
		_, err = migratev1.NewAgentClient(conn).Describe(t.Context(), &migratev1.DescribeRequest{})
		mustCode(t, err, codes.Unavailable)
		conn.Close()
	}
}
