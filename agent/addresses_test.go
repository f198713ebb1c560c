package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	migratev1 "github.com/pagurus-project/pagurus/proto/migrate/v1"
)

// setAddresses tells the agent all addresses; what it could not do is an error too.
func (h *host) setAddresses(index uint64, prefixes ...string) error {
	resp, err := h.orders.SetAddresses(h.cluster.t.Context(), &migratev1.SetAddressesRequest{Index: index, Prefixes: prefixes})
	for _, f := range resp.GetFailures() {
		err = errors.Join(err, fmt.Errorf("%s: %s", f.GetAddress(), f.GetReason()))
	}
	return err
}

// mustHave checks what the machine has, and what was announced since the last call.
func (h *host) mustHave(announced []string, has ...string) {
	t := h.cluster.t
	t.Helper()
	list := func(texts []string) []netip.Addr {
		var all []netip.Addr
		for _, text := range texts {
			all = append(all, netip.MustParseAddr(text))
		}
		return all
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, a := range list(has) {
		if !h.addresses[a] {
			t.Errorf("it does not have %s", a)
		}
	}
	if len(h.addresses) != len(has) {
		t.Errorf("it has %v, not %v", h.addresses, has)
	}
	if !slices.Equal(h.announced, list(announced)) {
		t.Errorf("announced are %v, not %v", h.announced, announced)
	}
	h.announced = nil
}

func TestServiceAddresses(t *testing.T) {
	const first, second = "10.0.0.100/24", "10.0.0.101/24"
	c := newCluster(t)
	h := c.a
	for prefix, want := range map[string]codes.Code{first: codes.OK, "10.0.0.100/16": codes.FailedPrecondition, "here": codes.InvalidArgument} {
		if _, err := h.orders.CheckAddress(t.Context(), &migratev1.CheckAddressRequest{Prefix: prefix}); status.Code(err) != want {
			t.Errorf("%s: %v", prefix, err)
		}
	}
	if err := h.setAddresses(1, "here"); status.Code(err) != codes.InvalidArgument {
		t.Error(err)
	}
	if err := h.setAddresses(2, first, second); err != nil {
		t.Fatal(err)
	}
	h.mustHave([]string{"10.0.0.100", "10.0.0.101"}, "10.0.0.100", "10.0.0.101")
	if err := h.setAddresses(2, first, second); err != nil {
		t.Fatal(err)
	}
	h.mustHave(nil, "10.0.0.100", "10.0.0.101")
	// A leader of before has not heard what the next one has said.
	if err := h.setAddresses(1); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("a word of before: %v", err)
	}
	h.mustHave(nil, "10.0.0.100", "10.0.0.101")

	// What it has been given can be given to it again; what it has for itself cannot.
	h.mu.Lock()
	h.addresses[netip.MustParseAddr("10.0.0.1")] = true
	h.mu.Unlock()
	for prefix, want := range map[string]codes.Code{first: codes.OK, "10.0.0.1/24": codes.FailedPrecondition} {
		if _, err := h.orders.CheckAddress(t.Context(), &migratev1.CheckAddressRequest{Prefix: prefix}); status.Code(err) != want {
			t.Errorf("%s: %v", prefix, err)
		}
	}

	// They outlive the agent, and the next one knows which are of the service.
	h.kill()
	clear(h.known)
	h.start()
	if err := h.setAddresses(1); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("a word of before: %v", err)
	}
	h.failing["remove 10.0.0.100"] = 1
	if err := h.setAddresses(3, second); err == nil || err.Error() != "10.0.0.100: remove 10.0.0.100 fails" {
		t.Errorf("what cannot be taken off: %v", err)
	}
	h.mustHave([]string{"10.0.0.101"}, "10.0.0.1", "10.0.0.100", "10.0.0.101") // the new agent says it once more
	h.kill()
	clear(h.known)
	h.start()
	if err := h.setAddresses(3, second); err != nil {
		t.Fatal(err)
	}
	h.mustHave([]string{"10.0.0.101"}, "10.0.0.1", "10.0.0.101")
	// What could not be put on at first is announced when it is.
	h.failing["put 10.0.0.100"] = 1
	if err := h.setAddresses(3, first, second); err == nil || err.Error() != "10.0.0.100: put 10.0.0.100 fails" {
		t.Errorf("what cannot be put on: %v", err)
	}
	h.mustHave(nil, "10.0.0.1", "10.0.0.101")
	if err := h.setAddresses(3, first, second); err != nil {
		t.Fatal(err)
	}
	h.mustHave([]string{"10.0.0.100"}, "10.0.0.1", "10.0.0.100", "10.0.0.101")
	if err := h.setAddresses(3); err != nil {
		t.Fatal(err)
	}
	h.mustHave(nil, "10.0.0.1")
	if files, err := filepath.Glob(filepath.Join(h.dir, "addresses*")); err != nil || len(files) != 1 {
		t.Errorf("left in the journal: %v, %v", files, err)
	}
	// It remembers what it was told last, also when it has none.
	h.kill()
	h.start()
	if err := h.setAddresses(2, first); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("a word of before: %v", err)
	}
	h.mustHave(nil, "10.0.0.1")
}

// An address goes along with a process: from the freeze on the source's host is
// silent about it, and whoever runs the process has it, and nobody else.
func TestAddressGoesAlong(t *testing.T) {
	const text, index = "10.0.0.100/24", 7
	a := netip.MustParseAddr("10.0.0.100")
	begin := func(t *testing.T) *move {
		t.Helper()
		c := newCluster(t)
		if err := c.a.setAddresses(index, text); err != nil {
			t.Fatal(err)
		}
		m := c.newMove("m1")
		m.addresses = []string{text}
		c.a.mustHave([]string{"10.0.0.100"}, "10.0.0.100")
		return m
	}
	promised := func(t *testing.T) *move {
		t.Helper()
		m := begin(t)
		m.reserve()
		m.start()
		m.awaitPrepared()
		m.awaitPromised()
		m.a.mustBeSilent(m.id, a)
		m.b.mustHave(nil)
		return m
	}
	// where makes sure that one has it, and that none is silent about it.
	where := func(m *move, h, other *host) {
		m.t.Helper()
		h.mustHave([]string{"10.0.0.100"}, "10.0.0.100")
		other.mustHave(nil)
		m.a.mustBeSilent(m.id)
		m.b.mustBeSilent(m.id)
		// Who has said so last knows better than a list of before.
		if err := h.setAddresses(index - 1); status.Code(err) != codes.FailedPrecondition {
			m.t.Errorf("%s takes a list of before: %v", h.name, err)
		}
	}
	forgotten := func(h *host) { // by the neighbours
		h.mu.Lock()
		clear(h.known)
		h.mu.Unlock()
	}
	t.Run("done", func(t *testing.T) {
		m := promised(t)
		m.index = index + 1
		m.commit()
		m.b.mustHave([]string{"10.0.0.100"}, "10.0.0.100")
		m.a.mustBeSilent(m.id, a)
		m.dispose()
		m.mustRunAt(m.b)
		m.b.mustHave(nil, "10.0.0.100")
		m.a.mustHave(nil)
		m.a.mustBeSilent(m.id)
		// A list on its way since before the decision gives it to neither.
		if err := m.a.setAddresses(index, text); status.Code(err) != codes.FailedPrecondition {
			t.Errorf("the source takes a list of before: %v", err)
		}
		if err := m.b.setAddresses(index); status.Code(err) != codes.FailedPrecondition {
			t.Errorf("the destination takes a list of before: %v", err)
		}
		m.a.mustHave(nil)
		m.b.mustHave(nil, "10.0.0.100")
		m.forget()
		if err := m.b.setAddresses(index+1, text); err != nil {
			t.Error(err)
		}
		m.b.mustHave(nil, "10.0.0.100")
	})
	t.Run("aborted", func(t *testing.T) {
		m := promised(t)
		forgotten(m.a)
		m.index = index + 1
		m.abort()
		m.mustRunAt(m.a)
		where(m, m.a, m.b)
		m.forget()
	})
	t.Run("given up", func(t *testing.T) {
		m := begin(t)
		m.a.failing["promise"] = 1
		forgotten(m.a)
		m.reserve()
		m.start()
		m.awaitEnded(m.a)
		m.abort()
		where(m, m.a, m.b)
		m.forget()
	})
	t.Run("not silenced", func(t *testing.T) {
		m := begin(t)
		m.a.failing["silence m1"] = 1
		forgotten(m.a)
		m.reserve()
		m.start()
		if got := m.awaitEnded(m.a).GetReason(); got != "silence m1 fails" {
			t.Errorf("ended with %q", got)
		}
		m.abort()
		where(m, m.a, m.b)
		m.forget()
	})
	t.Run("never ran", func(t *testing.T) {
		m := promised(t)
		m.b.mu.Lock()
		delete(m.b.processes, pid) // killed by somebody
		m.b.mu.Unlock()
		m.index = index + 1
		m.decide(m.b, migratev1.Decision_DECISION_COMMIT, migratev1.Outcome_OUTCOME_NEVER_RAN)
		m.b.mustHave([]string{"10.0.0.100"})
		forgotten(m.a)
		m.index = index + 2
		m.decide(m.a, migratev1.Decision_DECISION_ABORT, migratev1.Outcome_OUTCOME_RESUMED)
		where(m, m.a, m.b)
		m.forget()
	})
	t.Run("fenced", func(t *testing.T) {
		m := promised(t)
		m.b.failing["commit"] = 1 << 30
		m.index = index + 1
		m.log.hold("m1", migratev1.Decision_DECISION_COMMIT)
		m.awaitPrepared()
		// The source's host has heard of the COMMIT by a list.
		if err := m.a.setAddresses(index + 1); err != nil {
			t.Fatal(err)
		}
		m.a.mustHave(nil)
		m.index = index + 2
		m.abort()
		m.mustRunAt(m.a)
		m.a.mustHave([]string{"10.0.0.100"}, "10.0.0.100")
		m.a.mustBeSilent(m.id)
		m.b.mu.Lock()
		m.b.announced = nil // it may have been there
		m.b.mu.Unlock()
		m.b.mustHave(nil)
		m.forget()
	})
	t.Run("fenced, and the destination's agent was lost", func(t *testing.T) {
		m := promised(t)
		g := m.b.gate("commit")
		m.index = index + 1
		m.log.hold("m1", migratev1.Decision_DECISION_COMMIT)
		m.awaitPrepared()
		g.reach(t) // the address is there by now
		m.b.mustHave([]string{"10.0.0.100"}, "10.0.0.100")
		m.b.killAt(g)
		m.log.hold("m1", migratev1.Decision_DECISION_ABORT)
		m.b.start()
		m.index = index + 2
		m.abort()
		m.mustRunAt(m.a)
		m.a.mustHave(nil, "10.0.0.100")
		m.b.mustHave(nil)
		m.a.mustBeSilent(m.id)
		m.forget()
	})
	t.Run("stopped twice", func(t *testing.T) {
		m := begin(t)
		m.a.mu.Lock()
		m.a.twice = true
		m.a.mu.Unlock()
		m.reserve()
		m.start()
		m.awaitPrepared()
		m.awaitPromised()
		m.a.mustBeSilent(m.id, a)
		m.index = index + 1
		m.commit()
		m.dispose()
		where(m, m.b, m.a)
		m.forget()
	})
	t.Run("cannot be taken off at first", func(t *testing.T) {
		m := promised(t)
		m.index = index + 1
		m.commit()
		m.a.failing["remove 10.0.0.100"], m.a.failing["speak m1"] = 2, 2
		m.dispose()
		where(m, m.b, m.a)
		m.forget()
	})
	for _, decision := range []migratev1.Decision{migratev1.Decision_DECISION_COMMIT, migratev1.Decision_DECISION_ABORT} {
		t.Run("the source's agent was lost, "+decision.String(), func(t *testing.T) {
			m := promised(t)
			m.a.kill()
			forgotten(m.a)
			m.a.start()
			// It is undecided who has it: nothing is announced.
			if err := m.a.setAddresses(index, text); err != nil {
				t.Fatal(err)
			}
			m.a.mustHave(nil, "10.0.0.100")
			m.a.mustBeSilent(m.id, a)
			m.index = index + 1
			if decision == migratev1.Decision_DECISION_ABORT {
				m.abort()
				where(m, m.a, m.b)
			} else {
				m.commit()
				m.dispose()
				where(m, m.b, m.a)
			}
			m.forget()
		})
	}
	t.Run("the destination's agent was lost", func(t *testing.T) {
		m := promised(t)
		m.b.kill()
		m.b.start()
		m.index = index + 1
		m.commit()
		m.dispose()
		where(m, m.b, m.a)
		m.forget()
	})
	t.Run("not in that network", func(t *testing.T) {
		m := begin(t)
		m.addresses = []string{"10.0.0.100/16"}
		for _, checkOnly := range []bool{true, false} {
			req := m.reserveRequest()
			req.CheckOnly = checkOnly
			resp, err := m.b.orders.Reserve(t.Context(), req)
			if err != nil || len(resp.GetBlockers()) != 1 || resp.GetBlockers()[0].GetCode() != "address-missing" {
				t.Errorf("%v, %v", resp, err)
			}
		}
		m.mustBeClean()
	})
}

// mustBeSilent checks what the machine is silent about under a name.
func (h *host) mustBeSilent(name string, about ...netip.Addr) {
	h.cluster.t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	if !slices.Equal(h.silent[name], about) {
		h.cluster.t.Errorf("%s is silent about %v, not %v", h.name, h.silent[name], about)
	}
}
