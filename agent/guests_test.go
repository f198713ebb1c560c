package agent

import (
	"net/netip"
	"slices"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	migratev1 "github.com/pagurus-project/pagurus/proto/migrate/v1"
)

// Connections and addresses are told and taken as they are.
func TestGuests(t *testing.T) {
	h := newCluster(t).a
	one := Connection{netip.MustParseAddrPort("10.0.0.1:80"), netip.MustParseAddrPort("10.0.0.9:1000")}
	other := Connection{netip.MustParseAddrPort("[fd00::2]:80"), netip.MustParseAddrPort("[fd00::9]:1000")}
	there := netip.MustParseAddr("10.0.0.2")
	h.mu.Lock()
	h.passed, h.guests = []PassedOn{{Migration: "moved", Connections: []Connection{one}, To: []netip.Addr{there}}}, []Connection{other}
	h.mu.Unlock()
	resp, err := h.orders.ListGuests(t.Context(), &migratev1.ListGuestsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if p := resp.GetPassed(); len(p) != 1 || p[0].GetMigration() != "moved" || !slices.Equal(p[0].GetTo(), []string{"10.0.0.2"}) ||
		len(p[0].GetConnections()) != 1 || p[0].GetConnections()[0].GetLocal() != "10.0.0.1:80" {
		t.Errorf("%v are passed on", p)
	}
	if g := resp.GetGuests(); len(g) != 1 || g[0].GetRemote() != "[fd00::9]:1000" {
		t.Errorf("guests %v", g)
	}
	if !slices.Equal(resp.GetAddresses(), []string{"10.0.0.1", "fd00::1"}) {
		t.Errorf("addresses %v", resp.GetAddresses())
	}
	order := &migratev1.PassOnRequest{Connections: resp.GetGuests(), Addresses: []string{"fd00::3"}}
	if _, err := h.orders.PassOn(t.Context(), order); err != nil {
		t.Fatal(err)
	}
	h.mu.Lock()
	if len(h.passed) != 1 || !slices.Equal(h.passed[0].Connections, []Connection{other}) || !slices.Equal(h.passed[0].To, []netip.Addr{netip.MustParseAddr("fd00::3")}) {
		t.Errorf("passed on: %v", h.passed)
	}
	h.failing["pass on"] = 1
	h.mu.Unlock()
	if _, err := h.orders.PassOn(t.Context(), order); status.Code(err) != codes.Unavailable {
		t.Errorf("what fails: %v", err)
	}
	for _, wrong := range []*migratev1.PassOnRequest{
		{Connections: []*migratev1.Connection{{Local: "10.0.0.1", Remote: "10.0.0.9:1000"}}},
		{Connections: []*migratev1.Connection{{Local: "10.0.0.1:80", Remote: "somewhere"}}},
		{Addresses: []string{"host-b"}},
	} {
		if _, err := h.orders.PassOn(t.Context(), wrong); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%v: %v", wrong, err)
		}
	}
}
