package coordinator

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/pagurus-project/pagurus/coordinator/clustertest/certtest"
	"github.com/pagurus-project/pagurus/coordinator/member"
	"github.com/pagurus-project/pagurus/coordinator/scheduler"
	migratev1 "github.com/pagurus-project/pagurus/proto/migrate/v1"
	"github.com/pagurus-project/pagurus/trust"
)

// join makes the agent of host-a a member that says it is called at address.
func join(t *testing.T, address string) *member.Group {
	t.Helper()
	group, err := member.Join(t.Context(), member.Config{
		Name: "host-a", Role: trust.RoleAgent, Bind: netip.MustParseAddrPort("127.0.0.1:0"),
		Key: bytes.Repeat([]byte{7}, member.KeyBytes), Meta: member.Meta{GRPC: address}, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	return group
}

func TestConns(t *testing.T) {
	group := join(t, "127.0.0.1:1")
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
	if _, err := conns.Agent("host-b"); status.Code(err) != codes.Unavailable {
		t.Errorf("a connection to nobody, who may not have been heard yet: %v", err)
	}
	conns.began = conns.began.Add(-introduction)
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

// inventories answers Inspect with a large one.
type inventories struct {
	migratev1.UnimplementedAgentServer
	size int
}

func (i inventories) Inspect(context.Context, *migratev1.InspectRequest) (*migratev1.InspectResponse, error) {
	return &migratev1.InspectResponse{Inventory: make([]byte, i.size)}, nil
}

// TestLargeInventory: what an agent may say is more than gRPC takes by default.
func TestLargeInventory(t *testing.T) {
	ca := certtest.New(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	const size = 16 << 20
	agent := ca.Credentials(t, trust.RoleAgent, "host-a")
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(agent.Server(trust.AllowRoles(trust.RoleCoordinator)))))
	migratev1.RegisterAgentServer(server, inventories{size: size})
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(l) }) // until Stop
	defer serving.Wait()
	defer server.Stop()
	group := join(t, l.Addr().String())
	defer group.Close()
	conns := newConns(ca.Credentials(t, trust.RoleCoordinator, "one"), group)
	defer conns.close()
	client, err := conns.Agent("host-a")
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Inspect(t.Context(), &migratev1.InspectRequest{})
	if err != nil || len(resp.GetInventory()) != size {
		t.Errorf("an inventory of %d bytes came as %d: %v", size, len(resp.GetInventory()), err)
	}
}
