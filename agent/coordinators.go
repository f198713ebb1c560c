package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/pagurus-project/pagurus/coordinator/member"
	migratev1 "github.com/pagurus-project/pagurus/proto/migrate/v1"
	"github.com/pagurus-project/pagurus/trust"
)

// coordinators are those that gossip knows. Any will do for a report: one that
// does not lead passes it on.
type coordinators struct {
	credentials *trust.Credentials
	group       *member.Group
	patience    time.Duration // for one answer

	mu    sync.Mutex
	open  map[string]link // by name; nil: it is closed
	first string          // answered last, so it is asked first
}

// A link is a connection to a coordinator.
type link struct {
	address string
	conn    *grpc.ClientConn
}

var errNoCoordinator = errors.New("this agent has not heard of any coordinator yet")

// known are the coordinators to ask, in that order: the one that answered
// last, others that are alive, and the rest, which may only not gossip.
func (c *coordinators) known() []member.Member {
	c.mu.Lock()
	first := c.first
	c.mu.Unlock()
	all := slices.DeleteFunc(c.group.Members(), func(m member.Member) bool { return m.Role != trust.RoleCoordinator })
	rank := func(m member.Member) int {
		switch {
		case m.Status == member.Alive && m.Name == first:
			return 0
		case m.Status == member.Alive:
			return 1
		}
		return 2
	}
	slices.SortStableFunc(all, func(a, b member.Member) int { return rank(a) - rank(b) })
	return all
}

// prefer has one coordinator asked first from now on, or no particular one.
func (c *coordinators) prefer(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.first = name
}

// preferCaller has the coordinator that gave an order asked first: it leads, and
// others would have to pass on what is said in the freeze.
func (c *coordinators) preferCaller(ctx context.Context) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return
	}
	if info, ok := p.AuthInfo.(credentials.TLSInfo); ok {
		if id, err := trust.Peer(info.State); err == nil {
			c.prefer(id.Name)
		}
	}
}

// connect returns the connection to a coordinator, and sees that it is made
// before it is needed.
func (c *coordinators) connect(m member.Member) (*grpc.ClientConn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open == nil { // who reports may be late
		return nil, fmt.Errorf("connecting to coordinator %s: %w", m.Name, net.ErrClosed)
	}
	if l, ok := c.open[m.Name]; ok {
		if l.address == m.Meta.GRPC {
			l.conn.Connect()
			return l.conn, nil
		}
		l.conn.Close()
		delete(c.open, m.Name)
	}
	allow := trust.AllowOnly(trust.Identity{Role: trust.RoleCoordinator, Name: m.Name})
	conn, err := grpc.NewClient("passthrough:///"+m.Meta.GRPC,
		grpc.WithTransportCredentials(credentials.NewTLS(c.credentials.Client(allow))),
		// A promise may wait for this connection: try again soon, for ever.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: 2 * time.Second,
		}),
		// What a coordinator's machine has not acknowledged for so long breaks
		// the connection: otherwise one that was gone for a while, together with
		// the others, would hear of a promise when TCP next tries, which may take
		// as long again. The time between pings is no less than servers allow by
		// default.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 6 * time.Minute, Timeout: 10 * time.Second}),
		grpc.WithIdleTimeout(0),
	)
	if err != nil {
		return nil, fmt.Errorf("connecting to coordinator %s: %w", m.Name, err)
	}
	conn.Connect()
	c.open[m.Name] = link{m.Meta.GRPC, conn}
	return conn, nil
}

// warm connects to all coordinators that are alive, so that the first report
// within a freeze does not have to.
func (c *coordinators) warm() {
	for _, m := range c.known() {
		if m.Status == member.Alive {
			_, _ = c.connect(m) // it is said when it is needed
		}
	}
}

// ask calls one coordinator after the other until one answers, with whatever.
func (c *coordinators) ask(ctx context.Context, call func(context.Context, migratev1.CoordinatorClient) error) error {
	err := errNoCoordinator
	for _, m := range c.known() {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err = c.askOne(ctx, m, call); answered(err) {
			c.prefer(m.Name)
			return err
		}
	}
	c.prefer("")
	return err
}

func (c *coordinators) askOne(ctx context.Context, m member.Member, call func(context.Context, migratev1.CoordinatorClient) error) error {
	conn, err := c.connect(m)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, c.patience)
	defer cancel()
	return call(ctx, migratev1.NewCoordinatorClient(conn))
}

// answered reports whether err is the leader's answer, and not the lack of one.
func answered(err error) bool {
	switch status.Code(err) {
	case codes.OK, codes.NotFound, codes.FailedPrecondition, codes.PermissionDenied, codes.InvalidArgument:
		return true
	}
	return false
}

func (c *coordinators) close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var errs []error
	for _, l := range c.open {
		errs = append(errs, l.conn.Close())
	}
	c.open = nil
	return errors.Join(errs...)
}
