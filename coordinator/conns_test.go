package coordinator

import (
	"bytes"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"testing"

	"github.com/pagurus-project/pagurus/coordinator/clustertest/certtest"
	"github.com/pagurus-project/pagurus/coordinator/member"
	"github.com/pagurus-project/pagurus/coordinator/scheduler"
	"github.com/pagurus-project/pagurus/trust"
)

func TestConns(t *testing.T) {
	group, err := member.Join(t.Context(), member.Config{
		Name: "host-a", Role: trust.RoleAgent, Bind: netip.MustParseAddrPort("127.0.0.1:0"),
		Key: bytes.Repeat([]byte{7}, member.KeyBytes), Meta: member.Meta{GRPC: "127.0.0.1:1"}, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer group.Close()
	conns := newConns(certtest.New(t).Credentials(t, trust.RoleCoordinator, "one"), group)
	id := trust.Identity{Role: trust.RoleAgent, Name: "host-a"}
	first, err := conns.to(id)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := conns.to(id); err != nil || again != first {
		t.Errorf("a second connection to one agent: %v", err)
	}
	if _, err := conns.Agent("host-b"); !errors.Is(err, scheduler.ErrNoSuchHost) {
		t.Errorf("a connection to nobody: %v", err)
	}
	if err := conns.close(); err != nil {
		t.Error(err)
	}
	// Who comes late, when the server is being taken apart, opens nothing that
	// nobody would close.
	if _, err := conns.Agent("host-a"); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a connection after the end: %v", err)
	}
}
