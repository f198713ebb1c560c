package addresses_test

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pagurus-project/pagurus/coordinator/addresses"
	"github.com/pagurus-project/pagurus/coordinator/member"
	"github.com/pagurus-project/pagurus/coordinator/scheduler"
	"github.com/pagurus-project/pagurus/migrate"
	migratev1 "github.com/pagurus-project/pagurus/proto/migrate/v1"
	"github.com/pagurus-project/pagurus/trust"
)

// A log is a replicated log with one server.
type log struct {
	mu      sync.Mutex
	ledger  *migrate.Ledger
	index   uint64
	changed func()
}

func (l *log) ApplyAddress(_ context.Context, event migrate.AddressEvent) (migrate.Address, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer l.changed()
	l.index++
	return l.ledger.ApplyAddress(event)
}

func (l *log) Addresses() ([]migrate.Address, uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ledger.Addresses(), l.index
}

// A host is an agent that does as it is told.
type host struct {
	migratev1.AgentClient

	mu     sync.Mutex
	down   bool
	index  uint64
	has    []string
	cannot map[string]bool // addresses that it can neither put on nor take off
}

func (h *host) CheckAddress(_ context.Context, req *migratev1.CheckAddressRequest, _ ...grpc.CallOption) (*migratev1.CheckAddressResponse, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.down:
		return nil, status.Error(codes.Unavailable, "is down")
	case netip.MustParsePrefix(req.GetPrefix()).Bits() != 24:
		return nil, status.Error(codes.FailedPrecondition, "not in its network")
	}
	return &migratev1.CheckAddressResponse{}, nil
}

func (h *host) SetAddresses(_ context.Context, req *migratev1.SetAddressesRequest, _ ...grpc.CallOption) (*migratev1.SetAddressesResponse, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.down {
		return nil, status.Error(codes.Unavailable, "is down")
	}
	if req.GetIndex() < h.index {
		return nil, status.Errorf(codes.FailedPrecondition, "a list as of %d after one as of %d", req.GetIndex(), h.index)
	}
	h.index, h.has = req.GetIndex(), req.GetPrefixes()
	resp := &migratev1.SetAddressesResponse{}
	for a := range h.cannot {
		resp.Failures = append(resp.Failures, &migratev1.AddressFailure{Address: a, Reason: "it cannot"})
	}
	return resp, nil
}

func (h *host) set(change func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	change()
}

func (h *host) must(t *testing.T, has ...string) {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	if !slices.Equal(h.has, has) {
		t.Errorf("it has been told %v, not %v", h.has, has)
	}
}

type hosts map[string]*host

func (h hosts) Agent(name string) (migratev1.AgentClient, error) {
	if h[name] == nil {
		return nil, scheduler.ErrNoSuchHost
	}
	return h[name], nil
}

// lead has a keeper lead until the returned function is called.
func lead(t *testing.T, k *addresses.Keeper) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var leading sync.WaitGroup
	leading.Go(func() { k.Lead(ctx) })
	synctest.Wait()
	return func() { cancel(); leading.Wait() }
}

func TestKeeper(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const first, second = "10.0.0.100/24", "10.0.0.101/24"
		p := netip.MustParsePrefix(first)
		all := hosts{"a": {}, "b": {}}
		l := &log{ledger: migrate.NewLedger(0)}
		members := func() []member.Member {
			at := netip.MustParseAddrPort("10.0.0.2:1")
			return []member.Member{
				{Name: "a", Role: trust.RoleAgent, Status: member.Alive, Address: at},
				{Name: "b", Role: trust.RoleAgent, Status: member.Alive},
				{Name: "d", Role: trust.RoleAgent, Status: member.Dead},
				{Name: "a", Role: trust.RoleCoordinator, Status: member.Alive},
			}
		}
		k := addresses.New(l, all, members, slog.New(slog.DiscardHandler))
		l.changed = k.Changed
		if _, err := k.Add(t.Context(), p, "a"); !errors.Is(err, scheduler.ErrNotLeading) {
			t.Errorf("without leading: %v", err)
		}
		stop := lead(t, k)
		// Who has nothing is told so: it may have something of before.
		all["a"].must(t)
		all["b"].must(t)

		for range 2 {
			if a, err := k.Add(t.Context(), p, "a"); err != nil || a.Host != "a" || a.Prefix != p {
				t.Fatalf("%+v, %v", a, err)
			}
			all["a"].must(t, first)
		}
		for _, test := range []struct {
			prefix, host string
			want         error
		}{
			{first, "b", migrate.ErrAddressTaken},
			{"10.0.0.102/16", "b", addresses.ErrUnfit},
			{second, "c", scheduler.ErrNoSuchHost},
			{"10.0.0.2/24", "b", addresses.ErrUnfit}, // a's own
		} {
			if _, err := k.Add(t.Context(), netip.MustParsePrefix(test.prefix), test.host); !errors.Is(err, test.want) {
				t.Errorf("%s on %s: %v", test.prefix, test.host, err)
			}
		}
		if list := k.Addresses(); len(list) != 1 {
			t.Errorf("what was refused is listed: %v", list)
		}

		// What a host cannot do keeps nothing else back.
		all["b"].set(func() { all["b"].cannot = map[string]bool{"10.0.0.103": true} })
		stuck := netip.MustParsePrefix("10.0.0.103/24")
		if a, err := k.Add(t.Context(), stuck, "b"); !errors.Is(err, addresses.ErrPending) || a.Host != "b" {
			t.Errorf("what cannot be put on: %+v, %v", a, err)
		}
		if _, err := k.Add(t.Context(), netip.MustParsePrefix(second), "b"); err != nil {
			t.Error(err)
		}
		if a, err := k.Remove(t.Context(), netip.MustParseAddr("10.0.0.101")); err != nil || a.Leaving {
			t.Errorf("%+v, %v", a, err)
		}
		if a, err := k.Remove(t.Context(), stuck.Addr()); err != nil || !a.Leaving {
			t.Errorf("what cannot be taken off: %+v, %v", a, err)
		}
		all["b"].set(func() { all["b"].cannot = nil })
		<-time.After(time.Minute)
		if list := k.Addresses(); len(list) != 1 {
			t.Errorf("left: %v", list)
		}

		// A host that does not answer keeps what it has, and is told when it is back.
		all["a"].set(func() { all["a"].down = true })
		if _, err := k.Add(t.Context(), netip.MustParsePrefix(second), "a"); !errors.Is(err, addresses.ErrUnreachable) {
			t.Errorf("on a host that is down: %v", err)
		}
		if _, err := k.Add(t.Context(), p, "a"); !errors.Is(err, addresses.ErrPending) {
			t.Errorf("what is there, on a host that is down: %v", err)
		}
		if a, err := k.Remove(t.Context(), p.Addr()); err != nil || !a.Leaving {
			t.Errorf("from a host that is down: %+v, %v", a, err)
		}
		all["a"].must(t, first)
		if _, err := k.Add(t.Context(), p, "b"); !errors.Is(err, migrate.ErrAddressTaken) {
			t.Errorf("while it leaves another: %v", err)
		}
		all["a"].set(func() { all["a"].down = false })
		<-time.After(time.Minute)
		all["a"].must(t)
		if list := k.Addresses(); len(list) != 0 {
			t.Errorf("left: %v", list)
		}
		if _, err := k.Remove(t.Context(), p.Addr()); !errors.Is(err, addresses.ErrNoSuchAddress) {
			t.Errorf("again: %v", err)
		}

		// The next leader tells everybody, and again and again.
		if _, err := k.Add(t.Context(), p, "b"); err != nil {
			t.Fatal(err)
		}
		stop()
		stop = lead(t, k)
		all["b"].must(t, first)
		all["b"].set(func() { all["b"].has = nil }) // by a boot
		<-time.After(time.Minute)
		synctest.Wait()
		all["b"].must(t, first)
		if a, err := k.Remove(t.Context(), p.Addr()); err != nil || a.Leaving {
			t.Errorf("%+v, %v", a, err)
		}
		all["b"].must(t)
		stop()
	})
}
