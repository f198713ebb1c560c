package coordinator

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"github.com/pagurus-project/pagurus/coordinator/member"
	"github.com/pagurus-project/pagurus/coordinator/scheduler"
	migratev1 "github.com/pagurus-project/pagurus/proto/migrate/v1"
	"github.com/pagurus-project/pagurus/trust"
)

// conns keeps a gRPC connection to each daemon that was ever needed. Gossip
// says where a daemon is, its certificate proves that it is the one.
type conns struct {
	credentials *trust.Credentials
	group       *member.Group
	began       time.Time

	mu   sync.Mutex
	open map[trust.Identity]dialled // nil once they are closed
}

var _ scheduler.Agents = (*conns)(nil)

type dialled struct {
	address string
	conn    *grpc.ClientConn
}

func newConns(c *trust.Credentials, g *member.Group) *conns {
	return &conns{credentials: c, group: g, began: time.Now(), open: map[trust.Identity]dialled{}}
}

// introduction is how long after its start a server may have heard too little to
// know who there is. It can be the leader by then, and whom it does not know is
// not one who does not exist.
const introduction = 5 * time.Second

// Agent returns a client of a host's agent, which may be down.
func (c *conns) Agent(host string) (migratev1.AgentClient, error) {
	conn, err := c.to(trust.Identity{Role: trust.RoleAgent, Name: host})
	if err != nil {
		return nil, err
	}
	return migratev1.NewAgentClient(conn), nil
}

// Coordinator returns a client of another coordinator.
func (c *conns) Coordinator(name string) (migratev1.CoordinatorClient, error) {
	conn, err := c.to(trust.Identity{Role: trust.RoleCoordinator, Name: name})
	if err != nil {
		return nil, err
	}
	return migratev1.NewCoordinatorClient(conn), nil
}

// to returns the connection to a daemon. One that gossip calls dead is tried
// all the same: it may only not gossip.
func (c *conns) to(id trust.Identity) (*grpc.ClientConn, error) {
	m, ok := c.group.Member(id.Role, id.Name)
	if !ok || m.Meta.GRPC == "" {
		if time.Since(c.began) < introduction {
			return nil, status.Errorf(codes.Unavailable, "nothing has been heard of %s yet", id.Name)
		}
		return nil, fmt.Errorf("%s: %w", id, scheduler.ErrNoSuchHost)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open == nil {
		return nil, fmt.Errorf("connecting to %s: %w", id, net.ErrClosed)
	}
	if d, ok := c.open[id]; ok {
		if d.address == m.Meta.GRPC {
			return d.conn, nil
		}
		d.conn.Close()
		delete(c.open, id)
	}
	conn, err := grpc.NewClient("passthrough:///"+m.Meta.GRPC,
		grpc.WithTransportCredentials(credentials.NewTLS(c.credentials.Client(trust.AllowOnly(id)))),
		// Inventories pass through here.
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(migratev1.MaxMessageBytes)),
		// A daemon that is back is to be noticed within a second, and a host
		// that swallows packets is not to be waited for longer than preflight
		// waits for it.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: 5 * time.Second,
		}),
		// What a host has not acknowledged for so long breaks the connection:
		// one that is back after a while would otherwise hear from us when TCP
		// next tries, minutes later. The time between pings is no less than
		// servers allow by default.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 6 * time.Minute, Timeout: 10 * time.Second}),
		// Between two migrations there may be hours, and the first order
		// within a freeze must not have to connect.
		grpc.WithIdleTimeout(0),
	)
	if err != nil {
		return nil, fmt.Errorf("connecting to %s: %w", id, err)
	}
	c.open[id] = dialled{m.Meta.GRPC, conn}
	return conn, nil
}

func (c *conns) close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var errs []error
	for _, d := range c.open {
		errs = append(errs, d.conn.Close())
	}
	c.open = nil
	return errors.Join(errs...)
}
