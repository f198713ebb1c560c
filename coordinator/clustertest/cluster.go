package clustertest

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pagurus-project/pagurus/coordinator"
	"github.com/pagurus-project/pagurus/coordinator/api"
	"github.com/pagurus-project/pagurus/coordinator/clustertest/agenttest"
	"github.com/pagurus-project/pagurus/coordinator/clustertest/certtest"
	"github.com/pagurus-project/pagurus/coordinator/member"
	"github.com/pagurus-project/pagurus/coordinator/replog"
	"github.com/pagurus-project/pagurus/coordinator/scheduler"
	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/trust"
)

// Patience is how long anything may take that has to happen some time.
const Patience = time.Minute

// A Cluster is some coordinators and the agents of some hosts.
type Cluster struct {
	t     testing.TB
	dir   string
	CA    *certtest.Authority
	World *agenttest.World

	mu      sync.Mutex
	configs map[string]coordinator.Config // of every coordinator ever
	servers map[string]*coordinator.Server
	agents  map[string]*Agent
}

// New makes a cluster of nobody yet.
func New(t testing.TB) *Cluster {
	t.Helper()
	c := &Cluster{
		t: t, dir: t.TempDir(), CA: certtest.New(t), World: agenttest.NewWorld(t, 50*time.Millisecond),
		configs: map[string]coordinator.Config{}, servers: map[string]*coordinator.Server{}, agents: map[string]*Agent{},
	}
	t.Cleanup(c.close)
	return c
}

// Start makes a cluster of n coordinators, named one, two and three, and of
// the agents of host-a and host-b. It returns when somebody leads and both
// agents are known everywhere.
func Start(t testing.TB, n int) *Cluster {
	t.Helper()
	c := New(t)
	names := []string{"one", "two", "three"}[:n]
	c.AddCoordinators(n, names...)
	for _, name := range names {
		c.Boot(name)
	}
	for _, host := range []string{"host-a", "host-b"} {
		c.AddAgent(host)
	}
	c.Leader()
	for _, name := range names {
		c.AwaitStatus(name, func(s api.Status) bool { return len(s.Hosts) == 2 && len(s.Servers) == n && s.Leader != "" })
	}
	return c
}

var key = bytes.Repeat([]byte{7}, member.KeyBytes)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// AddCoordinators decides on coordinators that expect so many of their kind,
// and on their ports; each knows the others, and those that were there before.
func (c *Cluster) AddCoordinators(expect int, names ...string) {
	c.t.Helper()
	for _, name := range names {
		ports := reserve(c.t, 4)
		config := coordinator.Config{
			Name: name, Advertise: netip.MustParseAddr("127.0.0.1"),
			GossipPort: ports[0], RaftPort: ports[1], GRPCPort: ports[2], HTTPPort: ports[3],
			Expect: expect, DataDir: filepath.Join(c.dir, name), Key: key, Version: "test",
			Credentials: c.CA.Credentials(c.t, trust.RoleCoordinator, name),
			HTTPSocket:  filepath.Join(c.dir, name+".sock"),
			Timing:      Timing(),
			// A leader that a busy machine keeps from its heartbeats would be
			// replaced, which changes what most tests are about.
			RaftTiming: replog.Timing{Heartbeat: 700 * time.Millisecond, Election: 700 * time.Millisecond, Lease: 500 * time.Millisecond},
			Logger:     quiet(),
		}
		c.mu.Lock()
		c.configs[name] = config
		c.mu.Unlock()
	}
}

// Timing is patient where a slow machine would otherwise change what happens,
// and else quick.
func Timing() scheduler.Timing {
	t := scheduler.DefaultTiming()
	t.Silence, t.Prepared, t.Reach = Patience, Patience, Patience
	t.RetryMin, t.RetryMax = 20*time.Millisecond, 200*time.Millisecond
	return t
}

// Ports are taken in turn, so that none is given to two, beginning where other
// processes with such tests probably do not. They are below those that systems
// give to outgoing connections: whoever comes back to one finds it free.
const (
	firstPort = 10_000
	ports     = 22_000
)

var nextPort atomic.Uint32

func init() { nextPort.Store(uint32(os.Getpid() * 1000 % ports)) }

// reserve finds free ports, for TCP and UDP alike.
func reserve(t testing.TB, n int) []uint16 {
	t.Helper()
	var found []uint16
	for range ports {
		if len(found) == n {
			return found
		}
		port := uint16(firstPort + nextPort.Add(1)%ports)
		address := net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port)))
		l, err := net.Listen("tcp", address)
		if err != nil {
			continue // somebody else's
		}
		defer l.Close()
		p, err := net.ListenPacket("udp", address)
		if err != nil {
			continue
		}
		defer p.Close()
		found = append(found, port)
	}
	t.Fatal("there are no free ports")
	return nil
}

// Boot starts a coordinator, for the first time or on what it has left.
func (c *Cluster) Boot(name string) *coordinator.Server {
	c.t.Helper()
	c.mu.Lock()
	config := c.configs[name]
	config.Join = c.seedsLocked(name)
	c.mu.Unlock()
	s, err := coordinator.Start(config)
	if err != nil {
		c.t.Fatal(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.servers[name] = s
	return s
}

// seedsLocked are the gossip addresses of all coordinators but one.
func (c *Cluster) seedsLocked(except string) []string {
	var seeds []string
	for name, config := range c.configs {
		if name != except {
			seeds = append(seeds, net.JoinHostPort("127.0.0.1", strconv.Itoa(int(config.GossipPort))))
		}
	}
	return seeds
}

// take removes a coordinator from those that run.
func (c *Cluster) take(name string) *coordinator.Server {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.servers[name]
	delete(c.servers, name)
	return s
}

// Kill ends a coordinator without a word to anybody.
func (c *Cluster) Kill(name string) {
	c.t.Helper()
	if s := c.take(name); s == nil {
		c.t.Errorf("%s does not run", name)
	} else if err := s.Close(); err != nil {
		c.t.Errorf("killing %s: %v", name, err)
	}
}

// Stop ends a coordinator as SIGTERM does.
func (c *Cluster) Stop(name string) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	if s := c.take(name); s == nil {
		c.t.Errorf("%s does not run", name)
	} else if err := s.Shutdown(ctx); err != nil {
		c.t.Errorf("stopping %s: %v", name, err)
	}
}

// Running are the names of the coordinators that run, sorted.
func (c *Cluster) Running() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var names []string
	for name := range c.servers {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Lost are the coordinators that do not run.
func (c *Cluster) Lost() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var names []string
	for name := range c.configs {
		if c.servers[name] == nil {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// Leader returns the name of the coordinator that leads, as soon as one does.
func (c *Cluster) Leader() string {
	c.t.Helper()
	var leader string
	c.Eventually("a coordinator leads", func() bool {
		for _, name := range c.Running() {
			if status, err := c.status(name); err == nil && status.Leads {
				leader = name
				return true
			}
		}
		return false
	})
	return leader
}

// Follower returns the name of one that does not lead.
func (c *Cluster) Follower() string {
	c.t.Helper()
	leader := c.Leader()
	for _, name := range c.Running() {
		if name != leader {
			return name
		}
	}
	c.t.Fatal("there is no follower")
	return ""
}

func (c *Cluster) status(name string) (api.Status, error) {
	client, err := api.NewClient(api.Config{Socket: c.Config(name).HTTPSocket, Patience: time.Nanosecond})
	if err != nil {
		return api.Status{}, err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	return client.Status(ctx)
}

// AwaitStatus returns a coordinator's status once it is as wanted.
func (c *Cluster) AwaitStatus(name string, want func(api.Status) bool) (s api.Status) {
	c.t.Helper()
	c.Eventually("status of "+name, func() (ok bool) {
		var err error
		s, err = c.status(name)
		return err == nil && want(s)
	})
	return s
}

// Config is what a coordinator is started with.
func (c *Cluster) Config(name string) coordinator.Config {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.configs[name]
}

// Eventually returns when a condition holds that has to hold some time.
func (c *Cluster) Eventually(what string, holds func() bool) {
	c.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(Patience); !holds(); <-tick.C {
		if time.Now().After(deadline) {
			c.t.Fatalf("it never came about that: %s", what)
		}
	}
}

// Reach returns when a channel is closed that has to be closed some time.
func (c *Cluster) Reach(what string, reached <-chan struct{}) {
	c.t.Helper()
	select {
	case <-reached:
	case <-time.After(Patience):
		c.t.Fatalf("never reached: %s", what)
	}
}

// Client asks the named coordinators, or all, with a certificate of that role
// and name.
func (c *Cluster) Client(role trust.Role, name string, servers ...string) *api.Client {
	c.t.Helper()
	c.mu.Lock()
	var addresses []string
	for server, config := range c.configs {
		if len(servers) == 0 || slices.Contains(servers, server) {
			addresses = append(addresses, fmt.Sprintf("127.0.0.1:%d", config.HTTPPort))
		}
	}
	c.mu.Unlock()
	client, err := api.NewClient(api.Config{
		Servers: addresses, Patience: Patience,
		TLS: c.CA.Credentials(c.t, role, name).Client(trust.AllowRoles(trust.RoleCoordinator)),
	})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(client.Close)
	return client
}

// Operator asks all coordinators, as anna.
func (c *Cluster) Operator() *api.Client {
	c.t.Helper()
	return c.Client(trust.RoleOperator, "anna")
}

// Await follows a migration until its report is as wanted.
func (c *Cluster) Await(client *api.Client, id string, want func(migrate.Report) bool) migrate.Report {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	var last migrate.Report
	for r, err := range client.Watch(ctx, id) {
		if err != nil {
			c.t.Fatalf("watching migration %s, last seen as %+v: %v", id, last, err)
		}
		if last = r; want(r) {
			return r
		}
	}
	c.t.Fatalf("migration %s ended as %+v", id, last)
	return last
}

// Settle follows a migration until nothing is left to do about it, and fails
// unless it is in that state then.
func (c *Cluster) Settle(client *api.Client, id string, want migrate.State) migrate.Report {
	c.t.Helper()
	r := c.Await(client, id, func(r migrate.Report) bool { return r.Settled })
	if r.State != want {
		c.t.Errorf("migration %s is %s instead of %s: %s %v", id, r.State, want, r.Reason, r.Blockers)
	}
	return r
}

func (c *Cluster) close() {
	for _, name := range c.Running() {
		c.Kill(name)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, a := range c.agents {
		a.close()
	}
}
