// Package guests sees that hosts pass TCP connections at their own addresses on to where they
// live, while its server leads.
//
//	host-a has 10.77.0.1 ── passes on ──▶ host-b ── passes on ──▶ host-c, where they live
//	   └──────────────────── and soon ────────────────────────────▲
//
// What hosts say they pass on, and what lives on them, is all that is known: nothing of it is in
// the log, and a host that does not answer is left as it is.
package guests

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/pagurus-project/pagurus/coordinator/logline"
	"github.com/pagurus-project/pagurus/coordinator/member"
	"github.com/pagurus-project/pagurus/coordinator/scheduler"
	"github.com/pagurus-project/pagurus/migrate"
	migratev1 "github.com/pagurus-project/pagurus/proto/migrate/v1"
	"github.com/pagurus-project/pagurus/trust"
)

const (
	// lookEvery is how often hosts are asked.
	lookEvery = 2 * time.Second
	// askTimeout is how long one may take to answer.
	askTimeout = 2 * time.Second
	// missedAtMost is how many looks in a row have to find a connection nowhere before it has
	// ended: hosts are not asked at the same instant, and it may just be on its way.
	missedAtMost = 3
)

// A Keeper does that. Its methods may be called from any goroutine.
type Keeper struct {
	agents  scheduler.Agents
	members func() []member.Member
	logger  *slog.Logger

	missed map[place]int // Lead's own

	mu     sync.Mutex
	passed map[string][]migrate.PassedOn // by migration, as of the last look
}

// A connection is named by its ends, as agents do it.
type connection struct{ local, remote string }

// A place is a host that passes a connection on.
type place struct {
	host string
	connection
}

// A view is what a host has said.
type view struct {
	addresses []string // the one first at which it is found
	guests    map[connection]bool
	passes    map[connection][]string // to the host with these addresses
	groups    []*migratev1.Passed
}

// New makes a keeper, which does nothing until Lead. The members are those that gossip knows.
func New(agents scheduler.Agents, members func() []member.Member, logger *slog.Logger) *Keeper {
	return &Keeper{agents: agents, members: members, logger: logger}
}

// PassedOn are connections of a migration that are passed on, as far as this server knows: it
// leads, or does not know any.
func (k *Keeper) PassedOn(migration string) []migrate.PassedOn {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.passed[migration])
}

// Lead looks again and again until ctx ends.
func (k *Keeper) Lead(ctx context.Context) {
	k.missed = make(map[place]int)
	defer k.note(nil)
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	for {
		k.look(ctx)
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func (k *Keeper) note(passed map[string][]migrate.PassedOn) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.passed = passed
}

// look asks all hosts once, and tells those that pass on what lives elsewhere by now.
func (k *Keeper) look(ctx context.Context) {
	views, all := k.ask(ctx)
	k.note(passedOn(views))
	for host, orders := range k.judge(views, all) {
		for to, connections := range orders {
			req := &migratev1.PassOnRequest{Connections: connections}
			if to != "" {
				req.Addresses = views[to].addresses
			}
			if err := k.tell(ctx, host, req); err != nil && ctx.Err() == nil {
				k.logger.Warn("telling a host where connections live", "host", host, "to", to, logline.KeyError, err)
			}
		}
	}
}

// ask returns what those hosts say that answer, and whether all have.
func (k *Keeper) ask(ctx context.Context) (views map[string]view, all bool) {
	var mu sync.Mutex
	var asking sync.WaitGroup
	views = make(map[string]view)
	asked := 0
	for _, m := range k.members() {
		if m.Role != trust.RoleAgent || m.Status != member.Alive {
			continue
		}
		asked++
		asking.Go(func() {
			agent, err := k.agents.Agent(m.Name)
			if err != nil {
				return
			}
			ctx, cancel := context.WithTimeout(ctx, askTimeout)
			defer cancel()
			resp, err := agent.ListGuests(ctx, &migratev1.ListGuestsRequest{})
			if err != nil {
				return // it is asked again
			}
			mu.Lock()
			defer mu.Unlock()
			views[m.Name] = viewOf(resp)
		})
	}
	asking.Wait()
	return views, len(views) == asked
}

func viewOf(resp *migratev1.ListGuestsResponse) view {
	v := view{addresses: resp.GetAddresses(), guests: map[connection]bool{}, passes: map[connection][]string{}, groups: resp.GetPassed()}
	for _, c := range resp.GetGuests() {
		v.guests[connection{c.GetLocal(), c.GetRemote()}] = true
	}
	for _, p := range resp.GetPassed() {
		for _, c := range p.GetConnections() {
			v.passes[connection{c.GetLocal(), c.GetRemote()}] = p.GetTo()
		}
	}
	return v
}

func (k *Keeper) tell(ctx context.Context, host string, req *migratev1.PassOnRequest) error {
	agent, err := k.agents.Agent(host)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	_, err = agent.PassOn(ctx, req)
	return err
}

// owner is the host that has one of the addresses, if it has answered.
func owner(views map[string]view, addresses ...string) string {
	for _, host := range slices.Sorted(maps.Keys(views)) {
		if slices.ContainsFunc(addresses, func(a string) bool { return slices.Contains(views[host].addresses, a) }) {
			return host
		}
	}
	return ""
}

// passedOn is what people are told of it.
func passedOn(views map[string]view) map[string][]migrate.PassedOn {
	all := make(map[string][]migrate.PassedOn)
	for _, host := range slices.Sorted(maps.Keys(views)) {
		for _, p := range views[host].groups {
			to := cmp.Or(owner(views, p.GetTo()...), "a host that does not answer")
			list := all[p.GetMigration()]
			same := func(other migrate.PassedOn) bool { return other.Host == host && other.To == to }
			i := slices.IndexFunc(list, same)
			if i < 0 {
				list, i = append(list, migrate.PassedOn{Host: host, To: to}), len(list)
			}
			list[i].Connections += len(p.GetConnections())
			all[p.GetMigration()] = list
		}
	}
	return all
}

// judge says which host is to pass which connections on to which other one instead; to none
// those that have come to their end, or that nobody sends there any more.
func (k *Keeper) judge(views map[string]view, all bool) map[string]map[string][]*migratev1.Connection {
	orders := make(map[string]map[string][]*migratev1.Connection)
	missed := make(map[place]int)
	for host, v := range views {
		for c, addresses := range v.passes {
			at := place{host, c}
			to, end, nowhere := next(views, at, owner(views, addresses...))
			if nowhere && all { // else it may live on a host that does not answer
				missed[at] = k.missed[at] + 1
				end = missed[at] >= missedAtMost
			}
			if to == "" && !end {
				continue
			}
			if orders[host] == nil {
				orders[host] = make(map[string][]*migratev1.Connection)
			}
			orders[host][to] = append(orders[host][to], &migratev1.Connection{Local: c.local, Remote: c.remote})
		}
	}
	k.missed = missed
	return orders
}

// next says of one connection where the host that passes it on to another one is to pass it on
// to instead, or that it is to end that, or that the connection is on none of these hosts.
func next(views map[string]view, at place, now string) (to string, end, nowhere bool) {
	home := owner(views, hostOf(at.local))
	var claims []string
	for host, v := range views {
		if v.guests[at.connection] && len(v.passes[at.connection]) == 0 { // else it was a guest there
			claims = append(claims, host)
		}
	}
	switch {
	case home == "", len(claims) > 1: // nobody knows what passes it on to this host, or it is just moving
		return "", false, false
	case len(claims) == 1 && at.host != home: // it was a guest here
		return "", !passes(views, at), false
	case len(claims) == 1 && claims[0] != now:
		return claims[0], false, false
	case len(claims) == 1, now == "", len(views[now].passes[at.connection]) > 0: // it is there, may be, or is further on
		return "", false, false
	}
	return "", false, true
}

// passes reports a host that passes the connection on to this one.
func passes(views map[string]view, at place) bool {
	for _, v := range views {
		if to, ok := v.passes[at.connection]; ok && owner(views, to...) == at.host {
			return true
		}
	}
	return false
}

// hostOf is the address of an end.
func hostOf(end string) string {
	a, err := netip.ParseAddrPort(end)
	if err != nil {
		return ""
	}
	return a.Addr().String()
}
