package agent

import (
	"bytes"
	"slices"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/pagurus-project/pagurus/migrate"
	migratev1 "github.com/pagurus-project/pagurus/proto/migrate/v1"
)

func ref(id string, epoch uint64) *migratev1.Ref { return &migratev1.Ref{Migration: id, Epoch: epoch} }

// TestOlderEpochsAreRefused: a leader that was deposed gives no orders.
func TestOlderEpochsAreRefused(t *testing.T) {
	m := newCluster(t).newMove("m1")
	m.reserve()
	m.start()
	m.awaitPromised()
	m.awaitPrepared()
	older := &move{cluster: m.cluster, id: "m1", ref: ref("m1", 4), token: m.token, page: m.page}
	ctx := t.Context()
	_, err := m.b.orders.Reserve(ctx, older.reserveRequest())
	mustCode(t, err, codes.FailedPrecondition)
	_, err = m.a.orders.Start(ctx, older.startRequest())
	mustCode(t, err, codes.FailedPrecondition)
	_, err = m.a.orders.Inspect(ctx, &migratev1.InspectRequest{Ref: older.ref, Pid: pid})
	mustCode(t, err, codes.FailedPrecondition)
	_, err = m.a.orders.Dispose(ctx, &migratev1.DisposeRequest{Ref: older.ref})
	mustCode(t, err, codes.FailedPrecondition)
	for _, h := range []*host{m.a, m.b} {
		for _, d := range []migratev1.Decision{migratev1.Decision_DECISION_ABORT, migratev1.Decision_DECISION_COMMIT} {
			_, err = h.orders.Decide(ctx, &migratev1.DecideRequest{Ref: older.ref, Decision: d})
			mustCode(t, err, codes.FailedPrecondition)
		}
		_, err = h.orders.Forget(ctx, &migratev1.ForgetRequest{Ref: older.ref})
		mustCode(t, err, codes.FailedPrecondition)
	}
	// COMMIT is for one attempt; ABORT is for all up to it.
	_, err = m.b.orders.Decide(ctx, &migratev1.DecideRequest{Ref: ref("m1", 6), Decision: migratev1.Decision_DECISION_COMMIT})
	mustCode(t, err, codes.FailedPrecondition)
	m.a.must(map[int]string{pid: "frozen"})
	m.b.must(map[int]string{pid: "shell"})
	m.ref = ref("m1", 6)
	m.abort()
	m.mustRunAt(m.a)
	m.forget()
}

// TestNewerReservation: the leader was lost in preflight, and the next one
// begins it again, with a token of its own.
func TestNewerReservation(t *testing.T) {
	m := newCluster(t).newMove("m1")
	m.reserve()
	m.ref, m.token = ref("m1", 6), bytes.Repeat([]byte{3}, 32)
	m.reserve()
	m.b.must(map[int]string{pid: "shell"})
	// The same leader may begin again too.
	m.token = bytes.Repeat([]byte{4}, 32)
	m.reserve()
	m.b.must(map[int]string{pid: "shell"})
	m.start()
	m.awaitPromised()
	// From here on only the log decides.
	m.ref = ref("m1", 7)
	_, err := m.b.orders.Reserve(t.Context(), m.reserveRequest())
	mustCode(t, err, codes.FailedPrecondition)
	_, err = m.a.orders.Start(t.Context(), m.startRequest())
	mustCode(t, err, codes.FailedPrecondition)
	m.ref = ref("m1", 6)
	m.commit()
	m.dispose()
	m.mustRunAt(m.b)
	m.forget()
}

// TestNewerStart takes the place of an attempt that has promised nothing.
func TestNewerStart(t *testing.T) {
	m := newCluster(t).newMove("m1")
	g := m.a.gate("freeze")
	m.reserve()
	m.start()
	g.reach(t)
	m.ref = ref("m1", 6)
	m.reserve()
	m.start()
	m.awaitPromised()
	m.commit()
	m.dispose()
	m.mustRunAt(m.b)
	m.forget()
}

// TestAbortComesFirst: what it aborts comes after it, and is not begun.
func TestAbortComesFirst(t *testing.T) {
	m := newCluster(t).newMove("m1")
	m.decide(m.a, migratev1.Decision_DECISION_ABORT, migratev1.Outcome_OUTCOME_UNKNOWN)
	m.decide(m.b, migratev1.Decision_DECISION_ABORT, migratev1.Outcome_OUTCOME_UNKNOWN)
	_, err := m.b.orders.Reserve(t.Context(), m.reserveRequest())
	mustCode(t, err, codes.FailedPrecondition)
	m.page = "127.0.0.1:1"
	_, err = m.a.orders.Start(t.Context(), m.startRequest())
	mustCode(t, err, codes.FailedPrecondition)
	m.mustRunAt(m.a)
	m.mustBeClean()
}

// TestUnusableOrders: nothing is done for them.
func TestUnusableOrders(t *testing.T) {
	m := newCluster(t).newMove("m1")
	ctx := t.Context()
	for name, change := range map[string]func(*migratev1.ReserveRequest){
		"ID":        func(r *migratev1.ReserveRequest) { r.Ref = ref("../m1", 5) },
		"no epoch":  func(r *migratev1.ReserveRequest) { r.Ref = ref("m1", 0) },
		"token":     func(r *migratev1.ReserveRequest) { r.Token = r.Token[:8] },
		"inventory": func(r *migratev1.ReserveRequest) { r.Inventory = []byte("x") },
		"options":   func(r *migratev1.ReserveRequest) { r.Options = &migratev1.Options{Compress: "lzw"} },
	} {
		req := m.reserveRequest()
		change(req)
		if _, err := m.b.orders.Reserve(ctx, req); err == nil {
			t.Errorf("%s: reserved", name)
		} else {
			mustCode(t, err, codes.InvalidArgument)
		}
	}
	m.page = "127.0.0.1:1"
	for name, change := range map[string]func(*migratev1.StartRequest){
		"ID":          func(r *migratev1.StartRequest) { r.Ref = ref("", 5) },
		"init":        func(r *migratev1.StartRequest) { r.Pid = 1 },
		"options":     func(r *migratev1.StartRequest) { r.Options = &migratev1.Options{MaxRounds: 1 << 30} },
		"destination": func(r *migratev1.StartRequest) { r.DestinationHost = "" },
	} {
		req := m.startRequest()
		change(req)
		if _, err := m.a.orders.Start(ctx, req); err == nil {
			t.Errorf("%s: started", name)
		} else {
			mustCode(t, err, codes.InvalidArgument)
		}
	}
	_, err := m.a.orders.Decide(ctx, &migratev1.DecideRequest{Ref: m.ref})
	mustCode(t, err, codes.InvalidArgument)
	_, err = m.a.orders.Start(ctx, &migratev1.StartRequest{Ref: m.ref, Pid: pid}) // a question
	mustCode(t, err, codes.NotFound)
	m.mustRunAt(m.a)
	m.mustBeClean()
}

// TestOneMigrationAProcess: whoever comes second is told by whom it is busy.
func TestOneMigrationAProcess(t *testing.T) {
	c := newCluster(t)
	m := c.newMove("m1")
	g := m.a.gate("freeze")
	m.reserve()
	second := c.newMove("m2")
	_, err := c.b.orders.Reserve(t.Context(), second.reserveRequest())
	mustCode(t, err, codes.FailedPrecondition)
	m.start()
	g.reach(t)
	second.page = m.page
	_, err = c.a.orders.Start(t.Context(), second.startRequest())
	mustCode(t, err, codes.FailedPrecondition)
	close(g.open)
	m.awaitPromised()
	m.commit()
	m.dispose()
	// It may go on at once, before the first one is forgotten.
	if busy := c.b.agent.busy(pid, ""); busy != "" {
		t.Errorf("the process is busy by %s", busy)
	}
	m.forget()
}

// TestBlockedReservation leaves nothing behind, and may be repeated.
func TestBlockedReservation(t *testing.T) {
	m := newCluster(t).newMove("m1")
	m.b.blockers = []migrate.Finding{{Code: migrate.CodePIDTaken, Detail: "what", Hint: "how"}}
	for range 2 {
		resp, err := m.b.orders.Reserve(t.Context(), m.reserveRequest())
		if err != nil || len(resp.GetBlockers()) != 1 || resp.GetBlockers()[0].GetCode() != "pid-taken" || resp.GetBlockers()[0].GetHint() != "how" {
			t.Errorf("got %v, %v", resp, err)
		}
		m.mustBeClean()
	}
	check := m.reserveRequest()
	check.CheckOnly, check.Ref, check.Token = true, nil, nil
	resp, err := m.b.orders.Reserve(t.Context(), check)
	if err != nil || len(resp.GetBlockers()) != 1 || resp.GetPageAddress() != "" {
		t.Errorf("got %v, %v", resp, err)
	}
	m.b.blockers, m.b.failing["reserve"] = nil, 1
	_, err = m.b.orders.Reserve(t.Context(), m.reserveRequest())
	mustCode(t, err, codes.Internal)
	m.mustBeClean()
	m.reserve()
	if names := m.b.journal(); !slices.Equal(names, []string{"m1-target.json"}) {
		t.Errorf("journal: %v", names)
	}
	m.decide(m.b, migratev1.Decision_DECISION_ABORT, migratev1.Outcome_OUTCOME_RELEASED)
	m.forget()
}
