package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/pagurus-project/pagurus/coordinator"
	"github.com/pagurus-project/pagurus/coordinator/api"
	"github.com/pagurus-project/pagurus/coordinator/clustertest/certtest"
	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/trust"
)

// realCluster is two agents with a real coordinator.
type realCluster struct {
	a, b   *host
	client *api.Client // by way of a's agent
	socket string      // which is here
	server *coordinator.Server
}

func startCoordinator(t *testing.T, authority *certtest.Authority) *coordinator.Server {
	t.Helper()
	server, err := coordinator.Start(coordinator.Config{
		Name: "one", Advertise: netip.MustParseAddr("127.0.0.1"), Expect: 1, DataDir: t.TempDir(), Key: gossipKey,
		Credentials: authority.Credentials(t, trust.RoleCoordinator, "one"), Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	return server
}

func newRealCluster(t *testing.T, running int) *realCluster {
	t.Helper()
	authority := certtest.New(t)
	r := &realCluster{server: startCoordinator(t, authority)}
	t.Cleanup(func() {
		if err := r.server.Close(); err != nil {
			t.Error(err)
		}
	})
	socket := filepath.Join(t.TempDir(), "sub", "agent.sock")
	r.socket = socket
	for i, name := range []string{"host-a", "host-b"} {
		h := &host{machine: newMachine(t, name), dir: t.TempDir()}
		c := Config{
			Host: name, Advertise: netip.MustParseAddr("127.0.0.1"), Join: []string{r.server.GossipAddress()}, Key: gossipKey,
			Credentials: authority.Credentials(t, trust.RoleAgent, name), StateDir: h.dir,
			Source: fakeSource{h.machine}, Target: fakeTarget{h.machine}, Addresses: fakeAddresses{h.machine}, Guests: fakeGuests{h.machine}, Timing: testTiming(), Logger: slog.New(slog.DiscardHandler),
		}
		if i == 0 {
			c.Sockets = []string{socket}
			h.processes[running] = "running"
			r.a = h
		} else {
			r.b = h
		}
		agent, err := Start(c)
		if err != nil {
			t.Fatal(err)
		}
		h.agent = agent
		t.Cleanup(func() {
			if err := agent.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	var err error
	r.client, err = api.NewClient(api.Config{Socket: socket, Patience: 30 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.client.Close)
	return r
}

// settled waits until a migration is.
func (r *realCluster) settled(t *testing.T, report migrate.Report, err error) migrate.Report {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for n, err := range r.client.Watch(ctx, report.ID) {
		if err != nil {
			t.Fatal(err)
		}
		report = n
	}
	if !report.Settled {
		t.Fatalf("it is not settled: %+v", report)
	}
	return report
}

// TestWithCoordinator: a move, a rehearsal and an abort, ordered by way of the
// agent's own socket from a real coordinator.
func TestWithCoordinator(t *testing.T) {
	sleep := child(t, "sleep", "1000").Process.Pid
	r := newRealCluster(t, sleep)
	request := api.MoveRequest{PID: sleep, To: "host-b"} // from where the socket is

	request.Options.Rehearse = true
	report, err := r.client.Move(t.Context(), request)
	if report = r.settled(t, report, err); report.State != migrate.StateRehearsed || report.DowntimeMS != 9 {
		t.Errorf("rehearsed: %+v", report)
	}
	request.Options.Rehearse = false

	r.b.mu.Lock()
	r.b.failing["prepare"] = 1
	r.b.mu.Unlock()
	report, err = r.client.Move(t.Context(), request)
	if report = r.settled(t, report, err); report.State != migrate.StateAborted || report.Reason == "" {
		t.Errorf("aborted: %+v", report)
	}
	r.a.must(map[int]string{sleep: "running"})
	r.b.must(map[int]string{})

	// Who cancels is told by the kernel, and not by a header.
	g := r.a.gate("freeze")
	report, err = r.client.Move(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	g.reach(t)
	cancel, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://agent/v1/migrations/"+report.ID+"/cancel", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	cancel.Header.Set(localUser, "12345")
	resp, err := overSocket(r.socket).Do(cancel)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	close(g.open)
	report = r.settled(t, report, nil)
	if want := fmt.Sprintf("cancelled by uid %d on host-a", os.Getuid()); report.State != migrate.StateAborted || report.Reason != want {
		t.Errorf("cancelled (%s): %s, %q instead of %q", resp.Status, report.State, report.Reason, want)
	}

	report, err = r.client.Move(t.Context(), request)
	if report = r.settled(t, report, err); report.State != migrate.StateDone || report.DowntimeMS != 4 || len(report.Rounds) != 2 {
		t.Errorf("moved: %+v", report)
	}
	r.b.must(map[int]string{sleep: "running"})
	r.a.must(map[int]string{})

	if check, err := r.client.Check(t.Context(), api.CheckRequest{PID: 1, From: "host-a"}); err != nil || check.Movable ||
		len(check.Blockers) != 1 || check.Blockers[0].Code != migrate.CodeInit {
		t.Errorf("checked: %+v, %v", check, err)
	}
	for _, h := range []*host{r.a, r.b} {
		h.cluster = &cluster{t: t}
		h.awaitEmptyJournal() // the coordinator tells them to forget
	}
}

// TestSocket: what an agent's socket is like, with and without a coordinator.
func TestSocket(t *testing.T) {
	c := newCluster(t) // whose coordinator has no HTTP API
	c.a.kill()
	socket := filepath.Join(t.TempDir(), "agent.sock")
	if err := os.WriteFile(socket, nil, 0o600); err != nil { // as left by another agent
		t.Fatal(err)
	}
	config := c.a.config()
	config.Sockets = []string{socket}
	agent, err := Start(config)
	if err != nil {
		t.Fatal(err)
	}
	defer agent.Close()
	if info, err := os.Stat(socket); err != nil || info.Mode().Type() != os.ModeSocket || info.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", info, err)
	}
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport}).Get("http://coordinator/v1/status")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("answers %v", resp)
	}
	// A client takes it for what it is, and tries again for a while.
	client, err := api.NewClient(api.Config{Socket: socket, Patience: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := client.Status(t.Context()); !errors.Is(err, api.ErrNoAnswer) {
		t.Errorf("the client says %v", err)
	}
}

// overSocket is a client of what listens there.
func overSocket(path string) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		},
	}}
}
