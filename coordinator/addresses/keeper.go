// Package addresses sees that each host has the service addresses that the log
// gives it, while its server leads.
//
//	Add ──▶ the host is asked ──▶ log ──┐
//	Remove ──────────▶ log: leaving ────┤
//	a change, or now and then ──────────┴─▶ tell hosts all that they have
//	                                              └─▶ log: removed what was leaving
//
// What the log says is who has an address; a host that cannot be reached has
// what it had.
package addresses

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pagurus-project/pagurus/coordinator/logline"
	"github.com/pagurus-project/pagurus/coordinator/member"
	"github.com/pagurus-project/pagurus/coordinator/scheduler"
	"github.com/pagurus-project/pagurus/migrate"
	migratev1 "github.com/pagurus-project/pagurus/proto/migrate/v1"
	"github.com/pagurus-project/pagurus/trust"
)

// Log is the replicated log as the keeper needs it.
type Log interface {
	// ApplyAddress writes an event and returns the address after it. Errors may
	// leave open whether it was written; with migrate.ErrAddressTaken it was not.
	ApplyAddress(ctx context.Context, event migrate.AddressEvent) (migrate.Address, error)
	// Addresses are all of them, in order, and the last entry of the log that they
	// take account of.
	Addresses() (all []migrate.Address, index uint64)
}

// Errors of a request that changed nothing.
var (
	ErrNoSuchAddress = errors.New("no such service address")
	// ErrUnfit says that the host cannot have the address.
	ErrUnfit = errors.New("cannot have this address")
	// ErrUnreachable says that the host did not answer.
	ErrUnreachable = errors.New("does not answer")
)

// ErrPending says that an address is written down, and not yet on its host.
var ErrPending = errors.New("is written down, and the host will have it as soon as it can")

const (
	// askTimeout is how long a host may take to answer.
	askTimeout = 5 * time.Second
	// How long and how often a host is asked that cannot be reached.
	reachFor   = 6 * time.Second
	reachEvery = 100 * time.Millisecond
	// tellEvery is how often hosts are told without a change: one may have lost
	// its addresses with a boot, or not have been reached.
	tellEvery = 10 * time.Second
)

// A Keeper does that. Its methods may be called from any goroutine.
type Keeper struct {
	log     Log
	agents  scheduler.Agents
	members func() []member.Member
	logger  *slog.Logger
	wake    chan struct{} // has one element after a change

	mu   sync.Mutex
	ctx  context.Context        // ends when this server leads no longer; nil: it does not
	busy map[string]*sync.Mutex // by host: what one is told comes in order
}

// New makes a keeper, which does nothing until Lead. The members are those that
// gossip knows.
func New(log Log, agents scheduler.Agents, members func() []member.Member, logger *slog.Logger) *Keeper {
	return &Keeper{
		log: log, agents: agents, members: members, logger: logger,
		wake: make(chan struct{}, 1), busy: map[string]*sync.Mutex{},
	}
}

// Changed tells of a change in the log. It does not block.
func (k *Keeper) Changed() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// Addresses are all of them, in order.
func (k *Keeper) Addresses() []migrate.Address {
	all, _ := k.log.Addresses()
	return all
}

// Lead tells hosts what they have until ctx ends. The log is as new as any leader's
// before.
func (k *Keeper) Lead(ctx context.Context) {
	k.mu.Lock()
	k.ctx = ctx
	k.mu.Unlock()
	defer func() {
		k.mu.Lock()
		k.ctx = nil
		k.mu.Unlock()
	}()
	ticker := time.NewTicker(tellEvery)
	defer ticker.Stop()
	for {
		var telling sync.WaitGroup
		for _, host := range k.hosts() {
			telling.Go(func() {
				if _, err := k.tell(ctx, host); err != nil && ctx.Err() == nil {
					k.logger.Warn("telling a host its service addresses", "host", host, logline.KeyError, err)
				}
			})
		}
		telling.Wait()
		select {
		case <-ctx.Done():
			return
		case <-k.wake: // somebody may have lost all that it had
		case <-ticker.C:
		}
	}
}

// hosts are those that have addresses, and everybody who is alive: one that has none
// may have had some before.
func (k *Keeper) hosts() []string {
	var hosts []string
	for _, a := range k.Addresses() {
		hosts = append(hosts, a.Host)
	}
	for _, m := range k.members() {
		if m.Role == trust.RoleAgent && m.Status == member.Alive {
			hosts = append(hosts, m.Name)
		}
	}
	slices.Sort(hosts)
	return slices.Compact(hosts)
}

// tell tells a host all that it has, and writes down that it has no longer what
// was leaving. What the host could not do is returned by address.
func (k *Keeper) tell(ctx context.Context, host string) (failed map[netip.Addr]string, err error) {
	k.mu.Lock()
	leading, one := k.ctx != nil, k.busy[host]
	if one == nil {
		one = &sync.Mutex{}
		k.busy[host] = one
	}
	k.mu.Unlock()
	if !leading {
		return nil, scheduler.ErrNotLeading
	}
	one.Lock()
	defer one.Unlock()
	all, index := k.log.Addresses()
	req := &migratev1.SetAddressesRequest{Index: index}
	var leaving []netip.Addr
	for _, a := range all {
		switch {
		case a.Host != host:
		case a.Leaving:
			leaving = append(leaving, a.Prefix.Addr())
		default:
			req.Prefixes = append(req.Prefixes, a.Prefix.String())
		}
	}
	failed = map[netip.Addr]string{}
	err = k.ask(ctx, host, func(ctx context.Context, agent migratev1.AgentClient) error {
		resp, err := agent.SetAddresses(ctx, req)
		for _, f := range resp.GetFailures() {
			a, err := netip.ParseAddr(f.GetAddress())
			if err != nil {
				return fmt.Errorf("the agent's answer: %w", err)
			}
			failed[a] = f.GetReason()
			k.logger.Warn("a service address of a host", "host", host, "address", a.String(), logline.KeyError, f.GetReason())
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	for _, a := range leaving {
		if failed[a] != "" {
			continue
		}
		if _, err := k.log.ApplyAddress(ctx, migrate.AddressRemoved{Address: a, Host: host}); err != nil {
			return nil, fmt.Errorf("writing to the log: %w", err)
		}
		k.logger.Info("service address removed", "address", a.String(), "host", host)
	}
	return failed, nil
}

func (k *Keeper) ask(ctx context.Context, host string, call func(context.Context, migratev1.AgentClient) error) error {
	agent, err := k.agents.Agent(host)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	return call(ctx, agent)
}

// Add gives a host an address. When it returns without an error the host has it, with
// ErrPending it will have it; all other errors say that nothing was changed, unless
// leadership was lost: then Add may be repeated.
func (k *Keeper) Add(ctx context.Context, p netip.Prefix, host string) (migrate.Address, error) {
	ctx, stop, err := k.whileLeading(ctx)
	if err != nil {
		return migrate.Address{}, err
	}
	defer stop()
	added := migrate.AddressAdded{Prefix: p, Host: host, At: time.Now().UTC()}
	// What is in the log already is not asked for.
	ledger := migrate.NewLedger(0)
	for _, a := range k.Addresses() {
		ledger.RestoreAddress(a)
	}
	a, err := ledger.ApplyAddress(added)
	if err != nil {
		return a, err
	}
	if a.Since.Equal(added.At) {
		for _, m := range k.members() {
			if m.Address.Addr() == p.Addr() {
				return migrate.Address{}, fmt.Errorf("%s %w: %s is that of %s %s", host, ErrUnfit, p.Addr(), m.Role, m.Name)
			}
		}
		err := k.check(ctx, p, host)
		switch {
		case ctx.Err() != nil:
			return migrate.Address{}, fmt.Errorf("%w: %w", scheduler.ErrNotLeading, ctx.Err())
		case errors.Is(err, scheduler.ErrNoSuchHost):
			return migrate.Address{}, err
		case status.Code(err) == codes.FailedPrecondition:
			return migrate.Address{}, fmt.Errorf("%s %w: %s", host, ErrUnfit, scheduler.Message(err))
		case err != nil:
			return migrate.Address{}, fmt.Errorf("the agent on %s %w: %s", host, ErrUnreachable, scheduler.Message(err))
		}
	}
	if a, err = k.log.ApplyAddress(ctx, added); err != nil {
		return a, err
	}
	k.logger.Info("service address added", "address", p.String(), "host", host)
	failed, err := k.tell(ctx, host)
	switch {
	case ctx.Err() != nil:
		return a, fmt.Errorf("%w: %w", scheduler.ErrNotLeading, ctx.Err())
	case err != nil:
		return a, fmt.Errorf("%s %w: the agent on %s does not answer: %s", p.Addr(), ErrPending, host, scheduler.Message(err))
	case failed[p.Addr()] != "":
		return a, fmt.Errorf("%s %w: %s", p.Addr(), ErrPending, failed[p.Addr()])
	}
	return a, nil
}

// check asks a host whether it could have an address, for a while again if it does
// not answer: it may only just have started, or this server.
func (k *Keeper) check(ctx context.Context, p netip.Prefix, host string) error {
	for began := time.Now(); ; {
		err := k.ask(ctx, host, func(ctx context.Context, agent migratev1.AgentClient) error {
			_, err := agent.CheckAddress(ctx, &migratev1.CheckAddressRequest{Prefix: p.String()})
			return err
		})
		if status.Code(err) != codes.Unavailable || time.Since(began) > reachFor {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(reachEvery):
		}
	}
}

// Remove takes an address from the host that has it, unless it is in a migration
// (migrate.ErrAddressHeld). If the host does not answer, or
// cannot, the address is returned as leaving: it will be gone when the host has done it.
func (k *Keeper) Remove(ctx context.Context, address netip.Addr) (migrate.Address, error) {
	ctx, stop, err := k.whileLeading(ctx)
	if err != nil {
		return migrate.Address{}, err
	}
	defer stop()
	a, err := k.log.ApplyAddress(ctx, migrate.AddressLeaving{Address: address})
	if err != nil {
		return a, err
	}
	if a.Host == "" {
		return a, fmt.Errorf("%w: %s", ErrNoSuchAddress, address)
	}
	failed, err := k.tell(ctx, a.Host)
	switch {
	case ctx.Err() != nil:
		return a, fmt.Errorf("%w: %w", scheduler.ErrNotLeading, ctx.Err())
	case err != nil:
		k.logger.Warn("telling a host its service addresses", "host", a.Host, logline.KeyError, err)
	}
	a.Leaving = err != nil || failed[address] != ""
	return a, nil
}

// whileLeading returns a context that ends with ctx or when this server stops to
// lead.
func (k *Keeper) whileLeading(ctx context.Context) (context.Context, context.CancelFunc, error) {
	k.mu.Lock()
	leading := k.ctx
	k.mu.Unlock()
	if leading == nil || leading.Err() != nil {
		return nil, nil, scheduler.ErrNotLeading
	}
	ctx, stop := scheduler.Within(ctx, leading)
	return ctx, stop, nil
}
