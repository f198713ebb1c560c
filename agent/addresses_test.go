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
func (h *host) setAddresses(epoch uint64, prefixes ...string) error {
	resp, err := h.orders.SetAddresses(h.cluster.t.Context(), &migratev1.SetAddressesRequest{Epoch: epoch, Prefixes: prefixes})
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
	if files, err := filepath.Glob(filepath.Join(h.dir, "addresses*")); err != nil || len(files) > 0 {
		t.Errorf("left in the journal: %v, %v", files, err)
	}
}
