package agent

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/pagurus-project/pagurus/coordinator/clustertest/certtest"
	"github.com/pagurus-project/pagurus/coordinator/member"
	"github.com/pagurus-project/pagurus/migrate"
	migratev1 "github.com/pagurus-project/pagurus/proto/migrate/v1"
	"github.com/pagurus-project/pagurus/trust"
)

func TestMain(m *testing.M) {
	// memberlist does not wait for a probe that is under way when it shuts down.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/hashicorp/memberlist.(*Memberlist).probe"))
}

var gossipKey = bytes.Repeat([]byte{7}, member.KeyBytes)

// testTiming repeats and retries without delay, and waits for nothing for long
// unless a test is about that.
func testTiming() Timing {
	t := DefaultTiming()
	t.Repeat, t.RetryMin, t.RetryMax, t.Yield = 10*time.Millisecond, time.Millisecond, 10*time.Millisecond, 0
	t.Decided = 100 * time.Millisecond
	return t
}

// A log is a coordinator that decides as the test says, and for ABORT when a
// side says for the second time that it has ended.
type log struct {
	migratev1.UnimplementedCoordinatorServer
	group *member.Group

	mu        sync.Mutex
	down      bool                                   // it takes no calls
	decisions map[string]*migratev1.DecisionResponse // what it holds, by migration
	reports   []*migratev1.ReportRequest
	asked     int           // for decisions
	news      chan struct{} // closed at the next report or question, and replaced
}

func (l *log) Report(_ context.Context, req *migratev1.ReportRequest) (*migratev1.ReportResponse, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reports = append(l.reports, req)
	l.tellLocked()
	if l.down {
		return nil, status.Error(codes.Unavailable, "no leader")
	}
	d := l.decisions[req.GetRef().GetMigration()]
	if d == nil {
		return nil, status.Error(codes.NotFound, "no such migration")
	}
	resp := &migratev1.ReportResponse{Decision: d.GetDecision(), Reason: d.GetReason()}
	if req.GetEnded() != nil && d.GetDecision() == 0 {
		said := func(r *migratev1.ReportRequest) bool { return r.GetEnded() != nil && r.GetHost() == req.GetHost() }
		if slices.ContainsFunc(l.reports[:len(l.reports)-1], said) {
			resp.Decision = migratev1.Decision_DECISION_ABORT
		}
	}
	return resp, nil
}

func (l *log) Decision(_ context.Context, req *migratev1.DecisionRequest) (*migratev1.DecisionResponse, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asked++
	l.tellLocked()
	if l.down {
		return nil, status.Error(codes.Unavailable, "no leader")
	}
	if d := l.decisions[req.GetRef().GetMigration()]; d != nil {
		return d, nil
	}
	return &migratev1.DecisionResponse{}, nil
}

func (l *log) tellLocked() {
	close(l.news)
	l.news = make(chan struct{})
}

// hold has the log hold a migration, with that decision or none.
func (l *log) hold(id string, d migratev1.Decision) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.holdLocked(id, d)
}

func (l *log) holdLocked(id string, d migratev1.Decision) {
	state := migrate.StatePrecopy
	switch d {
	case migratev1.Decision_DECISION_COMMIT:
		state = migrate.StateCommitted
	case migratev1.Decision_DECISION_ABORT:
		state = migrate.StateAborted
	}
	l.decisions[id] = &migratev1.DecisionResponse{Known: true, Decision: d, Reason: "because", State: string(state)}
}

// lose has the log hold the migration no more.
func (l *log) lose(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.decisions, id)
}

// awaitQuestions waits until a decision has been asked for so often.
func (l *log) awaitQuestions(t *testing.T, n int) {
	t.Helper()
	timeout := time.After(10 * time.Second)
	l.mu.Lock()
	for l.asked < n {
		news := l.news
		l.mu.Unlock()
		select {
		case <-news:
		case <-timeout:
			t.Fatal("nobody asks for a decision")
		}
		l.mu.Lock()
	}
	l.mu.Unlock()
}

func (l *log) setDown(down bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.down = down
}

// await returns the first report, from the n-th on, that is wanted.
func (l *log) await(t *testing.T, n int, what string, wanted func(*migratev1.ReportRequest) bool) *migratev1.ReportRequest {
	t.Helper()
	timeout := time.After(10 * time.Second)
	for {
		l.mu.Lock()
		reports, news := l.reports, l.news
		l.mu.Unlock()
		for i := n; i < len(reports); i++ {
			if wanted(reports[i]) {
				return reports[i]
			}
		}
		select {
		case <-news:
		case <-timeout:
			t.Fatalf("nobody reports %s, only %v", what, reports)
		}
	}
}

// awaitTwice waits until two reports are wanted.
func (l *log) awaitTwice(t *testing.T, what string, wanted func(*migratev1.ReportRequest) bool) {
	t.Helper()
	var first *migratev1.ReportRequest
	l.await(t, 0, what, func(r *migratev1.ReportRequest) bool {
		if !wanted(r) || r == first {
			return false
		}
		second := first != nil
		if !second {
			first = r
		}
		return second
	})
}

func (l *log) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.reports)
}

// A cluster is two hosts with agents and one coordinator that decides as it is
// told.
type cluster struct {
	t         *testing.T
	authority *certtest.Authority
	log       *log
	timing    Timing
	a, b      *host
}

// A host is one on which agents start and stop.
type host struct {
	*machine
	cluster *cluster
	dir     string
	agent   *Agent // nil while there is none
	conn    *grpc.ClientConn
	orders  migratev1.AgentClient
}

const pid = 4_000_001 // no process of the machine that the tests run on has it

func newCluster(t *testing.T, change ...func(*Timing)) *cluster {
	t.Helper()
	c := &cluster{t: t, authority: certtest.New(t), timing: testTiming()}
	for _, f := range change {
		f(&c.timing)
	}
	c.startLog()
	c.a = &host{machine: newMachine(t, "host-a", pid), cluster: c, dir: t.TempDir()}
	c.b = &host{machine: newMachine(t, "host-b"), cluster: c, dir: t.TempDir()}
	c.a.start()
	c.b.start()
	return c
}

func (c *cluster) startLog() {
	c.t.Helper()
	l := &log{decisions: map[string]*migratev1.DecisionResponse{}, news: make(chan struct{})}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		c.t.Fatal(err)
	}
	creds := c.authority.Credentials(c.t, trust.RoleCoordinator, "one")
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(creds.Server(trust.AllowRoles(trust.RoleAgent)))))
	migratev1.RegisterCoordinatorServer(server, l)
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(listener) })
	l.group, err = member.Join(c.t.Context(), member.Config{
		Name: "one", Role: trust.RoleCoordinator, Bind: netip.MustParseAddrPort("127.0.0.1:0"), Key: gossipKey,
		Meta: member.Meta{GRPC: listener.Addr().String()}, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		server.Stop()
		serving.Wait()
		l.group.Close()
	})
	c.log = l
}

// config is that of the host's agent.
func (h *host) config() Config {
	c := h.cluster
	var logger *slog.Logger
	if testing.Verbose() {
		logger = slog.New(slog.NewTextHandler(c.t.Output(), nil))
	} else {
		logger = slog.New(slog.DiscardHandler)
	}
	return Config{
		Host: h.name, Advertise: netip.MustParseAddr("127.0.0.1"), Join: []string{c.log.group.Address().String()}, Key: gossipKey,
		Credentials: c.authority.Credentials(c.t, trust.RoleAgent, h.name), StateDir: h.dir,
		Source: fakeSource{h.machine}, Target: fakeTarget{h.machine}, Addresses: fakeAddresses{h.machine}, Guests: fakeGuests{h.machine}, Timing: c.timing, Version: "test", Logger: logger,
	}
}

// start starts the host's agent and connects to it as the coordinator.
func (h *host) start() {
	t := h.cluster.t
	t.Helper()
	agent, err := Start(h.config())
	if err != nil {
		t.Fatal(err)
	}
	h.agent = agent
	t.Cleanup(h.kill)
	creds := h.cluster.authority.Credentials(t, trust.RoleCoordinator, "one")
	h.conn, err = grpc.NewClient("passthrough:///"+agent.GRPCAddress(),
		grpc.WithTransportCredentials(credentials.NewTLS(creds.Client(trust.AllowOnly(trust.Identity{Role: trust.RoleAgent, Name: h.name})))))
	if err != nil {
		t.Fatal(err)
	}
	h.orders = migratev1.NewAgentClient(h.conn)
}

// kill ends the agent as a crash would.
func (h *host) kill() {
	if h.agent == nil {
		return
	}
	h.conn.Close()
	if err := h.agent.Close(); err != nil {
		h.cluster.t.Error(err)
	}
	h.agent = nil
}

// killAt kills the agent while one of its engines is at a gate, which stays
// shut for it: what comes behind is never done.
func (h *host) killAt(g *gate) {
	h.cluster.t.Helper()
	h.mu.Lock()
	h.dead = g
	h.mu.Unlock()
	h.agent.die()
	close(g.open)
	h.kill()
}

// stop ends the agent politely.
func (h *host) stop() {
	t := h.cluster.t
	t.Helper()
	h.conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := h.agent.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	h.agent = nil
}

// journal lists what the host's journal holds, by file name.
func (h *host) journal() []string {
	h.cluster.t.Helper()
	files, err := os.ReadDir(filepath.Join(h.dir, "migrations"))
	if err != nil {
		h.cluster.t.Fatal(err)
	}
	var names []string
	for _, f := range files {
		names = append(names, f.Name())
	}
	return names
}

// awaitEmptyJournal waits for something that nobody is told of.
func (h *host) awaitEmptyJournal() {
	h.cluster.t.Helper()
	timeout := time.After(10 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for len(h.journal()) > 0 {
		select {
		case <-tick.C:
		case <-timeout:
			h.cluster.t.Fatalf("%s keeps %v in its journal", h.name, h.journal())
		}
	}
}

// A move is one migration from a to b as a coordinator orders it.
type move struct {
	*cluster
	id        string
	ref       *migratev1.Ref
	options   *migratev1.Options
	token     []byte
	page      string
	addresses []string // that go along
	index     uint64   // that decisions tell
}

func (c *cluster) newMove(id string) *move {
	c.log.hold(id, 0)
	return &move{cluster: c, id: id, ref: &migratev1.Ref{Migration: id, Epoch: 5}, token: bytes.Repeat([]byte{9}, 32)}
}

func (m *move) reserveRequest() *migratev1.ReserveRequest {
	m.t.Helper()
	what := inventory(pid)
	for _, text := range m.addresses {
		what.Addresses = append(what.Addresses, netip.MustParsePrefix(text))
	}
	inventory, err := what.Encode()
	if err != nil {
		m.t.Fatal(err)
	}
	return &migratev1.ReserveRequest{Ref: m.ref, SourceHost: "host-a", Inventory: inventory, Options: m.options, Token: m.token}
}

func (m *move) reserve() {
	m.t.Helper()
	resp, err := m.b.orders.Reserve(m.t.Context(), m.reserveRequest())
	if err != nil || len(resp.GetBlockers()) > 0 {
		m.t.Fatalf("reserving: %v, %v", resp, err)
	}
	m.page = resp.GetPageAddress()
}

func (m *move) startRequest() *migratev1.StartRequest {
	return &migratev1.StartRequest{
		Ref: m.ref, Pid: pid, Options: m.options, DestinationHost: "host-b", PageAddress: m.page, Token: m.token, Addresses: m.addresses,
	}
}

func (m *move) start() {
	m.t.Helper()
	if _, err := m.a.orders.Start(m.t.Context(), m.startRequest()); err != nil {
		m.t.Fatal(err)
	}
}

// awaitFrom waits for a report of this migration from a host.
func (m *move) awaitFrom(h *host, what string, wanted func(*migratev1.ReportRequest) bool) *migratev1.ReportRequest {
	m.t.Helper()
	return m.log.await(m.t, 0, what, func(r *migratev1.ReportRequest) bool {
		return r.GetRef().GetMigration() == m.id && r.GetHost() == h.name && wanted(r)
	})
}

func (m *move) awaitPromised() *migratev1.Promised {
	m.t.Helper()
	return m.awaitFrom(m.a, "a promise", func(r *migratev1.ReportRequest) bool { return r.GetPromised() != nil }).GetPromised()
}

func (m *move) awaitPrepared() {
	m.t.Helper()
	m.awaitFrom(m.b, "that it is prepared", func(r *migratev1.ReportRequest) bool { return r.GetPrepared() != nil })
}

func (m *move) awaitEnded(h *host) *migratev1.Ended {
	m.t.Helper()
	return m.awaitFrom(h, "its end", func(r *migratev1.ReportRequest) bool { return r.GetEnded() != nil }).GetEnded()
}

// decide tells one side a decision and wants one outcome.
func (m *move) decide(h *host, d migratev1.Decision, want migratev1.Outcome) *migratev1.DecideResponse {
	m.t.Helper()
	resp, err := h.orders.Decide(m.t.Context(), &migratev1.DecideRequest{Ref: m.ref, Decision: d, Reason: "because", AddressesIndex: m.index})
	if err != nil || resp.GetOutcome() != want {
		m.t.Fatalf("%s answers %v to %v with %v, %v, want %v", h.name, resp.GetOutcome(), d, resp, err, want)
	}
	return resp
}

func (m *move) commit() *migratev1.DecideResponse {
	m.t.Helper()
	return m.decide(m.b, migratev1.Decision_DECISION_COMMIT, migratev1.Outcome_OUTCOME_RUNNING)
}

func (m *move) dispose() {
	m.t.Helper()
	if _, err := m.a.orders.Dispose(m.t.Context(), &migratev1.DisposeRequest{Ref: m.ref, AddressesIndex: m.index}); err != nil {
		m.t.Fatal(err)
	}
}

// abort tells both sides.
func (m *move) abort() {
	m.t.Helper()
	m.decide(m.a, migratev1.Decision_DECISION_ABORT, migratev1.Outcome_OUTCOME_RESUMED)
	m.decide(m.b, migratev1.Decision_DECISION_ABORT, migratev1.Outcome_OUTCOME_RELEASED)
}

// forget tells both sides, and makes sure that nothing is left of it.
func (m *move) forget() {
	m.t.Helper()
	for _, h := range []*host{m.a, m.b} {
		if _, err := h.orders.Forget(m.t.Context(), &migratev1.ForgetRequest{Ref: m.ref}); err != nil && status.Code(err) != codes.NotFound {
			m.t.Errorf("forgetting at %s: %v", h.name, err)
		}
	}
	m.mustBeClean()
}

func (m *move) mustBeClean() {
	m.t.Helper()
	for _, h := range []*host{m.a, m.b} {
		if left := h.journal(); len(left) > 0 {
			m.t.Errorf("%s still has %v in its journal", h.name, left)
		}
	}
}

// mustRunAt makes sure that the process runs there and nothing of it is left
// at the other host.
func (m *move) mustRunAt(h *host) {
	m.t.Helper()
	for _, other := range []*host{m.a, m.b} {
		if other == h {
			other.must(map[int]string{pid: "running"})
		} else {
			other.must(map[int]string{})
		}
	}
}

func mustCode(t *testing.T, err error, want codes.Code) {
	t.Helper()
	if status.Code(err) != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

// reach waits until an engine has come to a gate.
func (g *gate) reach(t *testing.T) {
	t.Helper()
	select {
	case <-g.reached:
	case <-time.After(10 * time.Second):
		t.Fatal("no engine has come to the gate")
	}
}
