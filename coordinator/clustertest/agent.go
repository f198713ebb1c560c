package clustertest

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/pagurus-project/pagurus/coordinator/clustertest/agenttest"
	"github.com/pagurus-project/pagurus/coordinator/member"
	migratev1 "github.com/pagurus-project/pagurus/proto/migrate/v1"
	"github.com/pagurus-project/pagurus/trust"
)

// An Agent is the agent of one host, with its place on the network.
type Agent struct {
	*agenttest.Agent
	cluster     *Cluster
	credentials *trust.Credentials
	grpcPort    uint16
	gossipPort  uint16

	mu     sync.Mutex
	group  *member.Group // nil while it is dead
	server *grpc.Server
	conns  map[string]*grpc.ClientConn // by address
	serve  sync.WaitGroup
}

// AddAgent starts the agent of a host.
func (c *Cluster) AddAgent(host string) *Agent {
	c.t.Helper()
	ports := reserve(c.t, 2)
	a := &Agent{
		cluster: c, credentials: c.CA.Credentials(c.t, trust.RoleAgent, host),
		grpcPort: ports[0], gossipPort: ports[1], conns: map[string]*grpc.ClientConn{},
	}
	a.Agent = c.World.AddAgent(host, a)
	c.mu.Lock()
	c.agents[host] = a
	c.mu.Unlock()
	a.listen()
	return a
}

// Agent returns the agent of a host.
func (c *Cluster) Agent(host string) *Agent {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.agents[host]
}

// listen takes the agent's place on the network.
func (a *Agent) listen() {
	a.cluster.t.Helper()
	a.cluster.mu.Lock()
	seeds := a.cluster.seedsLocked("")
	a.cluster.mu.Unlock()
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(a.grpcPort))))
	if err != nil {
		a.cluster.t.Fatal(err)
	}
	group, err := member.Join(context.Background(), member.Config{
		Name: a.Host, Role: trust.RoleAgent, Bind: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), a.gossipPort),
		Seeds: seeds, Key: key, Meta: member.Meta{GRPC: l.Addr().String(), Version: "test"}, Logger: quiet(),
	})
	if err != nil {
		l.Close()
		a.cluster.t.Fatal(err)
	}
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(a.credentials.Server(trust.AllowRoles(trust.RoleCoordinator)))))
	migratev1.RegisterAgentServer(server, a.Agent)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.group, a.server = group, server
	a.serve.Go(func() { _ = server.Serve(l) }) // until Stop
}

// Kill ends the agent without a word. It may be called from one of its steps.
func (a *Agent) Kill() {
	a.Agent.Kill()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.group == nil {
		return
	}
	a.server.Stop()
	if err := a.group.Close(); err != nil {
		a.cluster.t.Errorf("killing the agent of %s: %v", a.Host, err)
	}
	a.group = nil
}

// Restart brings a killed agent back.
func (a *Agent) Restart() {
	a.cluster.t.Helper()
	a.serve.Wait()
	a.listen()
	a.Agent.Restart()
}

func (a *Agent) close() {
	a.Kill()
	a.serve.Wait()
	a.Wait()
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, conn := range a.conns {
		conn.Close()
	}
}

// Report tells any coordinator that answers; one that does not lead passes it on.
func (a *Agent) Report(ctx context.Context, req *migratev1.ReportRequest) (*migratev1.ReportResponse, error) {
	err := status.Error(codes.Unavailable, "no coordinator is known")
	for _, client := range a.coordinators() {
		var resp *migratev1.ReportResponse
		if resp, err = client.Report(ctx, req); status.Code(err) != codes.Unavailable {
			return resp, err
		}
	}
	return nil, err
}

// coordinators are those that gossip knows.
func (a *Agent) coordinators() []migratev1.CoordinatorClient {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.group == nil {
		return nil
	}
	var clients []migratev1.CoordinatorClient
	for _, m := range a.group.Members() {
		if m.Role != trust.RoleCoordinator {
			continue
		}
		if conn, err := a.connLocked(m.Meta.GRPC); err != nil {
			a.cluster.t.Errorf("connecting to %s: %v", m.Name, err)
		} else {
			clients = append(clients, migratev1.NewCoordinatorClient(conn))
		}
	}
	return clients
}

func (a *Agent) connLocked(address string) (*grpc.ClientConn, error) {
	if address == "" {
		return nil, errors.New("it has told no address")
	}
	if conn := a.conns[address]; conn != nil {
		return conn, nil
	}
	conn, err := grpc.NewClient("passthrough:///"+address,
		grpc.WithTransportCredentials(credentials.NewTLS(a.credentials.Client(trust.AllowRoles(trust.RoleCoordinator)))),
		// A coordinator that is back is to be noticed soon.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, MaxDelay: 200 * time.Millisecond},
			MinConnectTimeout: Patience,
		}))
	if err == nil {
		a.conns[address] = conn
	}
	return conn, err
}

// Coordinator is a client of one coordinator, with this agent's certificate.
func (a *Agent) Coordinator(name string) migratev1.CoordinatorClient {
	a.mu.Lock()
	defer a.mu.Unlock()
	conn, err := a.connLocked(net.JoinHostPort("127.0.0.1", strconv.Itoa(int(a.cluster.Config(name).GRPCPort))))
	if err != nil {
		a.cluster.t.Fatal(err)
	}
	return migratev1.NewCoordinatorClient(conn)
}
