package member

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
	"go.uber.org/goleak"

	"github.com/pagurus-project/pagurus/trust"
)

func TestMain(m *testing.M) {
	// memberlist does not wait for a probe that is under way when it shuts down.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/hashicorp/memberlist.(*Memberlist).probe"))
}

var key = bytes.Repeat([]byte{7}, KeyBytes)

func config(name string, role trust.Role, seeds ...string) Config {
	return Config{
		Name: name, Role: role, Bind: netip.MustParseAddrPort("127.0.0.1:0"), Seeds: seeds, Key: key,
		Meta: Meta{GRPC: name + ":1", HTTP: name + ":2", Raft: name + ":3", Version: "v1"}, Logger: slog.New(slog.DiscardHandler),
	}
}

func join(t *testing.T, c Config) *Group {
	t.Helper()
	g, err := Join(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	return g
}

// await returns once g sees exactly these members, written name/role=status.
func await(t *testing.T, g *Group, want ...string) {
	t.Helper()
	timeout := time.After(30 * time.Second)
	for {
		changed := g.Changed()
		var got []string
		for _, m := range g.Members() {
			got = append(got, fmt.Sprintf("%s/%s=%s", m.Name, m.Role, m.Status))
		}
		if strings.Join(got, " ") == strings.Join(want, " ") {
			return
		}
		select {
		case <-changed:
		case <-timeout:
			t.Fatalf("sees %v, not %v", got, want)
		}
	}
}

func TestGroup(t *testing.T) {
	// One host with both daemons, and an agent that is there before its seed.
	reserved, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	seed := reserved.Addr().String()
	early := join(t, config("host-b", trust.RoleAgent, seed))
	await(t, early, "host-b/agent=alive")
	reserved.Close()

	c := config("host-a", trust.RoleCoordinator)
	c.Bind = netip.MustParseAddrPort(seed)
	coordinator := join(t, c)
	agent := join(t, config("host-a", trust.RoleAgent, seed))
	for _, g := range []*Group{early, coordinator, agent} {
		await(t, g, "host-a/agent=alive", "host-a/coordinator=alive", "host-b/agent=alive")
	}
	m, ok := early.Member(trust.RoleCoordinator, "host-a")
	want := Member{
		Name: "host-a", Role: trust.RoleCoordinator, Status: Alive, Address: coordinator.Address(),
		Meta: Meta{GRPC: "host-a:1", HTTP: "host-a:2", Raft: "host-a:3", Version: "v1"},
	}
	if !ok || m != want {
		t.Errorf("got %+v, want %+v", m, want)
	}

	// One goes with a word, one without.
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := agent.Leave(ctx); err != nil {
		t.Error(err)
	}
	if err := agent.Close(); err != nil {
		t.Error(err)
	}
	await(t, coordinator, "host-a/agent=left", "host-a/coordinator=alive", "host-b/agent=alive")
	if err := early.Close(); err != nil {
		t.Error(err)
	}
	await(t, coordinator, "host-a/agent=left", "host-a/coordinator=alive", "host-b/agent=dead")

	// Both come back, at other addresses.
	join(t, config("host-a", trust.RoleAgent, seed))
	join(t, config("host-b", trust.RoleAgent, seed))
	await(t, coordinator, "host-a/agent=alive", "host-a/coordinator=alive", "host-b/agent=alive")
}

// A member that comes back while others still talk about its earlier life is
// one of them again.
func TestComesBackAmidTalk(t *testing.T) {
	others := join(t, config("host-a", trust.RoleCoordinator))
	back := config("host-b", trust.RoleCoordinator, others.Address().String())
	first := join(t, back)
	back.Bind = first.Address()
	await(t, others, "host-a/coordinator=alive", "host-b/coordinator=alive")
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	back.tune = func(c *memberlist.Config) {
		entering := make(chan struct{})
		c.Delegate = &slowDelegate{Delegate: c.Delegate, entering: entering}
		c.Alive = &lateWord{entering: entering}
	}
	ctx, stop := context.WithCancel(t.Context())
	var talk sync.WaitGroup
	talk.Go(func() {
		for ctx.Err() == nil {
			_, _ = others.list.Join([]string{back.Bind.String()})
		}
	})
	defer talk.Wait()
	defer stop()
	if again := join(t, back); !again.entered() {
		t.Error("it takes itself for dead")
	}
}

// slowDelegate is asked for the first time right before a member chooses the
// number of its own entry. It waits until others are heard of.
type slowDelegate struct {
	memberlist.Delegate
	entering chan struct{}
	once     sync.Once
}

func (d *slowDelegate) NodeMeta(limit int) []byte {
	d.once.Do(func() { d.entering <- struct{}{} }) // somebody is in lateWord
	return d.Delegate.NodeMeta(limit)
}

// lateWord holds what is said first of a member up, and with it its entry, until
// the entry's number is chosen.
type lateWord struct {
	entering chan struct{}
	once     sync.Once
}

func (w *lateWord) NotifyAlive(*memberlist.Node) error {
	w.once.Do(func() {
		<-w.entering
		<-time.After(20 * time.Millisecond) // nothing tells when it is
	})
	return nil
}

func TestAnotherKeyIsAnotherCluster(t *testing.T) {
	ours := join(t, config("host-a", trust.RoleCoordinator))
	c := config("host-b", trust.RoleAgent)
	c.Key = bytes.Repeat([]byte{8}, KeyBytes)
	theirs := join(t, c)
	if n, err := theirs.list.Join([]string{ours.Address().String()}); err == nil {
		t.Errorf("joined %d members with another key", n)
	}
	await(t, ours, "host-a/coordinator=alive")
	await(t, theirs, "host-b/agent=alive")
}

func TestJoinRefuses(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"key":     func(c *Config) { c.Key = key[:16] },
		"name":    func(c *Config) { c.Name = "a/b" },
		"role":    func(c *Config) { c.Role = "" },
		"meta":    func(c *Config) { c.Meta.Version = strings.Repeat("v", 512) },
		"address": func(c *Config) { c.Bind = netip.MustParseAddrPort("0.0.0.0:0") },
		"port":    func(c *Config) { c.Bind = netip.MustParseAddrPort("192.0.2.1:1") },
	} {
		c := config("host-a", trust.RoleAgent)
		change(&c)
		if g, err := Join(t.Context(), c); err == nil {
			g.Close()
			t.Errorf("%s: joined", name)
		}
	}
}

// FuzzDecode: whatever a holder of the key says of itself, nothing panics and
// nobody is entered under a name that is not its own.
func FuzzDecode(f *testing.F) {
	meta, err := encode(config("host-a", trust.RoleAgent), false)
	if err != nil {
		f.Fatal(err)
	}
	f.Add("host-a/agent", meta)
	f.Add("host-b/agent", meta)
	f.Add("", []byte("{}"))
	f.Fuzz(func(t *testing.T, name string, meta []byte) {
		m, _, err := decode(&memberlist.Node{Name: name, Addr: net.IPv4(127, 0, 0, 1), Port: 1, Meta: meta})
		if err == nil && nodeName(m.Role, m.Name) != name {
			t.Errorf("%q is entered as %+v", name, m)
		}
	})
}
