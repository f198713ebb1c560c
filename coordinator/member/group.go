package member

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/pagurus-project/pagurus/coordinator/logline"
	"github.com/pagurus-project/pagurus/trust"
)

// Config says who joins and how.
type Config struct {
	Name  string     // of the host
	Role  trust.Role // coordinator or agent
	Bind  netip.AddrPort
	Seeds []string // host:port of other members, of which any will do
	// Known is where members were when this one last ran. They are tried once,
	// and again while nobody answers: whoever comes back is to find the others
	// at once, and not wait until they happen to tell it of themselves.
	Known []string
	Key   []byte // KeyBytes long
	Meta  Meta
	// Logger gets what gossip has to say.
	Logger *slog.Logger

	tune func(*memberlist.Config) // for tests
}

// How often seeds are tried while this member is alone, and later those of
// them that no living member is at. The second heals a cluster that was cut in
// two for so long that each half has given up the other.
const (
	searchAlone = 500 * time.Millisecond
	searchLater = 10 * time.Second
)

// How often all that a member knows is exchanged with another one. What gossip
// has missed, above all those whom a member that came back does not know yet,
// is known after that.
const pushPullInterval = 10 * time.Second

// How long a peer on the same network may take to answer over TCP.
const tcpTimeout = 3 * time.Second

// A Group is the cluster as one member sees it.
type Group struct {
	config Config
	list   *memberlist.Memberlist
	lines  *logline.Writer // what memberlist says
	stop   context.CancelFunc
	search sync.WaitGroup

	mu      sync.Mutex
	members map[string]Member // by node name; those that are gone stay
	changed chan struct{}     // closed at the next change, and replaced
	leaving bool
}

// Join makes this daemon a member. Seeds need not be there yet: they are tried
// in the background until ctx ends or Close is called. A port of zero in
// c.Bind takes a free one.
func Join(ctx context.Context, c Config) (*Group, error) {
	if err := (trust.Identity{Role: c.Role, Name: c.Name}).Validate(); err != nil {
		return nil, err
	}
	if len(c.Key) != KeyBytes {
		return nil, errKey
	}
	if _, err := encode(c, true); err != nil {
		return nil, err
	}
	if !c.Bind.IsValid() || c.Bind.Addr().IsUnspecified() {
		return nil, fmt.Errorf("gossip needs an address that others can reach, not %q", c.Bind)
	}
	g := &Group{config: c, members: map[string]Member{}, changed: make(chan struct{})}

	conf := memberlist.DefaultLANConfig()
	conf.Name = nodeName(c.Role, c.Name)
	conf.BindAddr, conf.BindPort = c.Bind.Addr().String(), int(c.Bind.Port())
	conf.AdvertisePort = conf.BindPort
	conf.TCPTimeout = tcpTimeout
	conf.PushPullInterval = pushPullInterval
	conf.SecretKey = c.Key
	conf.Delegate = delegate{g}
	conf.Events = events{g}
	conf.Conflict = conflict{g}
	// A daemon that comes back at another address is the same daemon.
	conf.DeadNodeReclaimTime = time.Nanosecond
	g.lines = logline.NewWriter(c.Logger)
	conf.Logger = log.New(g.lines, "", 0)
	if c.tune != nil {
		c.tune(conf)
	}
	list, err := memberlist.Create(conf)
	if err != nil {
		return nil, fmt.Errorf("joining gossip at %s: %w", c.Bind, err)
	}
	g.list = list
	if err := g.enter(); err != nil {
		return nil, errors.Join(err, list.Shutdown(), g.lines.Close())
	}
	ctx, g.stop = context.WithCancel(ctx)
	g.search.Go(func() { g.searchSeeds(ctx) })
	return g, nil
}

// enter makes sure that this member takes itself for alive. Others may speak of
// an earlier life of it, which memberlist hears before it enters itself: if that
// comes in between the choice of its number and the entry, the entry is too old
// to count (aliveNode, state.go), and the member stays dead to itself and to all
// who do not know it yet.
func (g *Group) enter() error {
	for range enterTries {
		if g.entered() {
			return nil
		}
		// A time-out is that of telling others: it is entered all the same.
		_ = g.list.UpdateNode(tcpTimeout)
	}
	return errors.New("entering gossip: others keep saying that this member is dead")
}

// Once is enough, but for a word that comes in between again.
const enterTries = 10

func (g *Group) entered() bool {
	name := nodeName(g.config.Role, g.config.Name)
	return slices.ContainsFunc(g.list.Members(), func(n *memberlist.Node) bool { return n.Name == name })
}

// Address is where this member gossips.
func (g *Group) Address() netip.AddrPort {
	n := g.list.LocalNode()
	ip, _ := netip.AddrFromSlice(n.Addr)
	return netip.AddrPortFrom(ip.Unmap(), n.Port)
}

// Members returns everybody that has been heard of, this member and those that
// are gone included, sorted by name and role.
func (g *Group) Members() []Member {
	g.mu.Lock()
	defer g.mu.Unlock()
	members := make([]Member, 0, len(g.members))
	for _, m := range g.members {
		members = append(members, m)
	}
	slices.SortFunc(members, func(a, b Member) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Role, b.Role))
	})
	return members
}

// Member returns one of them.
func (g *Group) Member(role trust.Role, name string) (Member, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	m, ok := g.members[nodeName(role, name)]
	return m, ok
}

// Changed returns a channel that is closed at the next change. Take it before
// looking at Members, and nothing is missed.
func (g *Group) Changed() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.changed
}

// Leave tells the others that this member goes, so that they do not take it
// for dead. Close has to follow.
func (g *Group) Leave(ctx context.Context) error {
	g.mu.Lock()
	g.leaving = true
	g.mu.Unlock()
	timeout := tcpTimeout
	if deadline, ok := ctx.Deadline(); ok {
		timeout = min(timeout, max(time.Until(deadline)/2, time.Millisecond))
	}
	if err := g.list.UpdateNode(timeout); err != nil {
		return fmt.Errorf("leaving gossip: %w", err)
	}
	if err := g.list.Leave(timeout); err != nil {
		return fmt.Errorf("leaving gossip: %w", err)
	}
	return nil
}

// Close stops gossiping, without a word.
func (g *Group) Close() error {
	g.stop()
	g.search.Wait()
	return errors.Join(g.list.Shutdown(), g.lines.Close())
}

func (g *Group) searchSeeds(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for first := true; ; first = false {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		var wg sync.WaitGroup
		seeds := g.missing()
		// Who answers first may know as little as this one.
		if first || g.list.NumMembers() == 1 {
			seeds = append(seeds, g.config.Known...)
		}
		for _, seed := range seeds {
			// Why it fails is logged by memberlist.
			wg.Go(func() { _, _ = g.list.Join([]string{seed}) })
		}
		wg.Wait()
		if g.list.NumMembers() > 1 {
			timer.Reset(searchLater)
		} else {
			timer.Reset(searchAlone)
		}
	}
}

// missing are the seeds that no living member is at.
func (g *Group) missing() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(g.config.Seeds), func(seed string) bool {
		for _, m := range g.members {
			if m.Status == Alive && m.Address.String() == seed {
				return true
			}
		}
		return false
	})
}

// put notes what gossip says of a node. memberlist holds a lock meanwhile, so
// nothing in here may call it.
func (g *Group) put(n *memberlist.Node, gone bool) {
	m, leaving, err := decode(n)
	if err != nil {
		g.config.Logger.Warn("ignoring a member", "error", err)
		return
	}
	switch {
	case gone && leaving:
		m.Status = Left
	case gone:
		m.Status = Dead
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.members[n.Name] = m
	close(g.changed)
	g.changed = make(chan struct{})
}

// events is how memberlist tells of changes.
type events struct{ g *Group }

var _ memberlist.EventDelegate = events{}

func (e events) NotifyJoin(n *memberlist.Node)   { e.g.put(n, false) }
func (e events) NotifyUpdate(n *memberlist.Node) { e.g.put(n, false) }
func (e events) NotifyLeave(n *memberlist.Node)  { e.g.put(n, true) }

// conflict is told of two members with one name.
type conflict struct{ g *Group }

var _ memberlist.ConflictDelegate = conflict{}

func (c conflict) NotifyConflict(existing, other *memberlist.Node) {
	c.g.config.Logger.Error("two members have the same name",
		"member", existing.Name, "at", existing.Address(), "and", other.Address())
}

// delegate is how memberlist asks what this member tells of itself. The rest
// of it is for messages of our own, of which there are none.
type delegate struct{ g *Group }

var _ memberlist.Delegate = delegate{}

func (d delegate) NodeMeta(int) []byte {
	d.g.mu.Lock()
	leaving := d.g.leaving
	d.g.mu.Unlock()
	data, _ := encode(d.g.config, leaving) // Join has seen that it fits
	return data
}

func (delegate) NotifyMsg([]byte)                {}
func (delegate) GetBroadcasts(int, int) [][]byte { return nil }
func (delegate) LocalState(bool) []byte          { return nil }
func (delegate) MergeRemoteState([]byte, bool)   {}
