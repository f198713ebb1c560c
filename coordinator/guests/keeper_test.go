package guests_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"

	"github.com/pagurus-project/pagurus/coordinator/guests"
	"github.com/pagurus-project/pagurus/coordinator/member"
	"github.com/pagurus-project/pagurus/migrate"
	migratev1 "github.com/pagurus-project/pagurus/proto/migrate/v1"
	"github.com/pagurus-project/pagurus/trust"
)

// A host is an agent that does as it is told.
type host struct {
	migratev1.AgentClient
	address string

	mu     sync.Mutex
	down   bool
	passes map[string]string // connection, by its remote end, to an address
	guests []string
	told   int
}

const local = "10.0.0.1:80" // an address of host-a

func (h *host) ListGuests(context.Context, *migratev1.ListGuestsRequest, ...grpc.CallOption) (*migratev1.ListGuestsResponse, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.down {
		return nil, errors.New("is down")
	}
	resp := &migratev1.ListGuestsResponse{Addresses: []string{h.address}}
	for _, g := range h.guests {
		resp.Guests = append(resp.Guests, &migratev1.Connection{Local: local, Remote: g})
	}
	for c, to := range h.passes {
		resp.Passed = append(resp.Passed, &migratev1.Passed{
			Migration: "moved", Connections: []*migratev1.Connection{{Local: local, Remote: c}}, To: []string{to},
		})
	}
	return resp, nil
}

func (h *host) PassOn(_ context.Context, req *migratev1.PassOnRequest, _ ...grpc.CallOption) (*migratev1.PassOnResponse, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.told++
	for _, c := range req.GetConnections() {
		switch {
		case len(req.GetAddresses()) == 0:
			delete(h.passes, c.GetRemote())
		case h.passes[c.GetRemote()] != "":
			h.passes[c.GetRemote()] = req.GetAddresses()[0]
		}
	}
	return &migratev1.PassOnResponse{}, nil
}

// set changes what the host has.
func (h *host) set(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f()
}

type hosts map[string]*host

func (all hosts) Agent(name string) (migratev1.AgentClient, error) { return all[name], nil }

func (all hosts) members() []member.Member {
	var list []member.Member
	for name := range all {
		list = append(list, member.Member{Role: trust.RoleAgent, Name: name, Status: member.Alive})
	}
	return list
}

// leading runs a test with a keeper that leads, and hosts a, b and c.
func leading(t *testing.T, f func(all hosts, k *guests.Keeper)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		all := make(hosts)
		for i, name := range []string{"host-a", "host-b", "host-c"} {
			all[name] = &host{address: fmt.Sprintf("10.0.0.%d", i+1), passes: map[string]string{}}
		}
		k := guests.New(all, all.members, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { k.Lead(ctx) })
		f(all, k)
		cancel()
		running.Wait()
	})
}

// long is never a multiple of the time between looks, which go on meanwhile.
const long = 20*time.Second + 300*time.Millisecond

func mustPass(t *testing.T, h *host, want map[string]string) {
	t.Helper()
	h.set(func() {
		if fmt.Sprint(h.passes) != fmt.Sprint(want) {
			t.Errorf("the host with %s passes on %v, not %v", h.address, h.passes, want)
		}
	})
}

// Connections are passed on by their home until they have ended.
func TestUntilTheyEnd(t *testing.T) {
	leading(t, func(all hosts, k *guests.Keeper) {
		a, b := all["host-a"], all["host-b"]
		a.set(func() { a.passes["10.0.0.9:1"], a.passes["10.0.0.9:2"] = b.address, b.address })
		b.set(func() { b.guests = []string{"10.0.0.9:1", "10.0.0.9:2"} })
		<-time.After(long)
		mustPass(t, a, map[string]string{"10.0.0.9:1": b.address, "10.0.0.9:2": b.address})
		if got, want := k.PassedOn("moved"), []migrate.PassedOn{{Host: "host-a", To: "host-b", Connections: 2}}; !slices.Equal(got, want) {
			t.Errorf("%v is told, not %v", got, want)
		}
		b.set(func() { b.guests = b.guests[1:] })
		<-time.After(long)
		mustPass(t, a, map[string]string{"10.0.0.9:2": b.address})
		b.set(func() { b.guests = nil })
		<-time.After(long)
		mustPass(t, a, nil)
		if got := k.PassedOn("moved"); got != nil || a.told != 2 || b.told != 0 {
			t.Errorf("%v is told; the hosts were told %d and %d times", got, a.told, b.told)
		}
	})
}

// Those that have moved on are passed on straight, and then by nobody else.
func TestMovedOn(t *testing.T) {
	leading(t, func(all hosts, _ *guests.Keeper) {
		a, b, c := all["host-a"], all["host-b"], all["host-c"]
		const one = "10.0.0.9:1"
		a.set(func() { a.passes[one] = b.address })
		b.set(func() { b.passes[one], b.guests = c.address, []string{one} }) // has not been swept
		c.set(func() { c.guests = []string{one} })
		<-time.After(time.Second)
		b.set(func() { b.guests = nil })
		<-time.After(long)
		mustPass(t, a, map[string]string{one: c.address})
		mustPass(t, b, nil)
		// And home.
		a.set(func() { delete(a.passes, one) })
		c.set(func() { c.passes[one], c.guests = a.address, nil })
		<-time.After(long)
		mustPass(t, c, nil)
	})
}

// What may live on a host that says nothing has not ended, and of two that claim it none is believed.
func TestUnclear(t *testing.T) {
	const one = "10.0.0.9:1"
	leading(t, func(all hosts, _ *guests.Keeper) {
		a, b, c := all["host-a"], all["host-b"], all["host-c"]
		a.set(func() { a.passes[one] = b.address })
		c.set(func() { c.down, c.guests = true, []string{one} })
		<-time.After(long)
		mustPass(t, a, map[string]string{one: b.address})
		b.set(func() { b.guests = []string{one} })
		c.set(func() { c.down = false })
		<-time.After(long)
		mustPass(t, a, map[string]string{one: b.address})
		b.set(func() { b.guests = nil })
		<-time.After(long)
		mustPass(t, a, map[string]string{one: c.address})
	})
}

// What nobody knows is left as it is.
func TestWithoutAnAnswer(t *testing.T) {
	const one = "10.0.0.9:1"
	for _, down := range []string{"host-a", "host-b", "host-c"} {
		leading(t, func(all hosts, _ *guests.Keeper) {
			a, b, c := all["host-a"], all["host-b"], all["host-c"]
			all[down].set(func() { all[down].down = true })
			a.set(func() { a.passes[one] = b.address })
			b.set(func() { b.passes[one] = c.address })
			c.set(func() { c.guests = []string{one} })
			<-time.After(long)
			mustPass(t, b, map[string]string{one: c.address})
			if down == "host-b" { // it is of no use any more
				mustPass(t, a, map[string]string{one: c.address})
			} else {
				mustPass(t, a, map[string]string{one: b.address})
			}
			all[down].set(func() { all[down].down = false })
			<-time.After(long)
			mustPass(t, a, map[string]string{one: c.address})
			mustPass(t, b, nil)
		})
	}
}
