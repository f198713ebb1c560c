package coordinator_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pagurus-project/pagurus/coordinator/api"
	"github.com/pagurus-project/pagurus/coordinator/clustertest"
	"github.com/pagurus-project/pagurus/coordinator/clustertest/agenttest"
	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/trust"
)

// code is the code of an error of the API.
func code(err error) string {
	if problem, ok := errors.AsType[*api.Error](err); ok {
		return problem.Code
	}
	return ""
}

// TestAnyServerTakesRequests asks a server that does not lead, and the leader.
func TestAnyServerTakesRequests(t *testing.T) {
	c := clustertest.Start(t, 3)
	leader := c.Leader()
	for i, server := range c.Running() {
		pid := 10 + i
		c.World.AddProcess("host-a", pid)
		client := c.Client(trust.RoleOperator, "anna", server)
		created, err := client.Move(t.Context(), api.MoveRequest{PID: pid, From: "host-a", To: "host-b"})
		if err != nil {
			t.Fatalf("%s, while %s leads: %v", server, leader, err)
		}
		r := c.Settle(client, created.ID, migrate.StateDone)
		if r.DowntimeMS != 4 || r.Command != fmt.Sprintf("work %d", pid) || len(r.Rounds) != 2 || r.TotalMS <= 0 {
			t.Errorf("%s: report %+v", server, r)
		}
		shown, err := client.Migration(t.Context(), created.ID)
		if diff := cmp.Diff(r, shown); err != nil || diff != "" {
			t.Errorf("%s: %v %s", server, err, diff)
		}
		c.World.MustRunOnlyOn("host-b", pid)
	}
	// All of them answer with the same list, whoever leads.
	var lists [][]migrate.Report
	for _, server := range c.Running() {
		list, err := c.Client(trust.RoleViewer, "eve", server).Migrations(t.Context(), "")
		if err != nil || len(list) != 3 {
			t.Errorf("%s lists %d migrations, %v", server, len(list), err)
		}
		lists = append(lists, list)
	}
	if diff := cmp.Diff(lists[0], lists[1]); diff != "" {
		t.Error(diff)
	}
}

func TestRequests(t *testing.T) {
	c := clustertest.Start(t, 1)
	client := c.Operator()
	c.World.AddProcess("host-a", 7)
	c.World.AddProcess("host-b", 9)

	t.Run("hosts", func(t *testing.T) {
		hosts, err := client.Hosts(t.Context())
		var want []migrate.Host
		for _, name := range []string{"host-a", "host-b"} {
			want = append(want, migrate.Host{
				Name: name, Address: "127.0.0.1", Status: "alive", Kernel: "6.18.0", CPUs: 2,
				MemoryBytes: 1 << 30, FreeBytes: 1 << 29, Load1: 0.5, Agent: "test",
			})
		}
		if diff := cmp.Diff(want, hosts); err != nil || diff != "" {
			t.Error(err, diff)
		}
	})

	t.Run("processes", func(t *testing.T) {
		all, err := client.Processes(t.Context(), "")
		if err != nil || len(all.Processes) != 2 || len(all.Unreachable) != 0 {
			t.Fatalf("got %+v, %v", all, err)
		}
		want := migrate.Process{PID: 9, PPID: 1, Command: "work 9", State: "S", Threads: 2, ResidentBytes: 1 << 20, Host: "host-b"}
		if diff := cmp.Diff(want, all.Processes[1]); diff != "" {
			t.Error(diff)
		}
		one, err := client.Processes(t.Context(), "host-b")
		if err != nil || len(one.Processes) != 1 || one.Processes[0].PID != 9 {
			t.Errorf("got %+v, %v", one, err)
		}
		if _, err := client.Processes(t.Context(), "host-x"); code(err) != api.CodeNotFound {
			t.Errorf("processes of nobody: %v", err)
		}
	})

	t.Run("addresses", func(t *testing.T) {
		const service = "10.0.0.100/24"
		a, err := client.AddAddress(t.Context(), api.AddressRequest{Address: service, Host: "host-a"})
		if err != nil || a.Prefix.String() != service || a.Host != "host-a" || a.Since.IsZero() || a.Leaving {
			t.Fatalf("got %+v, %v", a, err)
		}
		for request, want := range map[api.AddressRequest]string{
			{Address: service, Host: "host-b"}:         api.CodeAddressTaken,
			{Address: "10.0.0.101/16", Host: "host-b"}: api.CodeAddressUnfit,
			{Address: "10.0.0.101/24", Host: "host-x"}: api.CodeNotFound,
			{Address: "10.0.0.101", Host: "host-b"}:    api.CodeInvalid,
			{Address: "127.0.0.2/8", Host: "host-b"}:   api.CodeInvalid,
			{Address: "10.0.0.101/24"}:                 api.CodeInvalid,
		} {
			if _, err := client.AddAddress(t.Context(), request); code(err) != want {
				t.Errorf("%+v: %v", request, err)
			}
		}
		if list, err := client.Addresses(t.Context()); err != nil || len(list) != 1 || !cmp.Equal(list[0].Since, a.Since) || list[0].Host != "host-a" {
			t.Errorf("got %+v, %v", list, err)
		}
		for _, wrong := range []string{"10.0.0.101", "here"} {
			if _, err := client.RemoveAddress(t.Context(), wrong); code(err) != api.CodeNotFound && code(err) != api.CodeInvalid {
				t.Errorf("%s: %v", wrong, err)
			}
		}
		if a, err := client.RemoveAddress(t.Context(), "10.0.0.100"); err != nil || a.Host != "host-a" || a.Leaving {
			t.Errorf("got %+v, %v", a, err)
		}
		if list, err := client.Addresses(t.Context()); err != nil || len(list) != 0 {
			t.Errorf("got %+v, %v", list, err)
		}
	})

	t.Run("check", func(t *testing.T) {
		check, err := client.Check(t.Context(), api.CheckRequest{PID: 7, From: "host-a", To: "host-b"})
		if err != nil || !check.Movable || len(check.Tree) != 1 || check.Tree[0].Host != "host-a" {
			t.Errorf("got %+v, %v", check, err)
		}
		check, err = client.Check(t.Context(), api.CheckRequest{PID: 8, From: "host-a", To: "host-x"})
		if err != nil || check.Movable || len(check.Blockers) != 2 {
			t.Errorf("got %+v, %v", check, err)
		}
		c.World.MustRemember(0)
	})

	t.Run("refused", func(t *testing.T) {
		for _, tt := range []struct {
			pid      int
			from, to string
			want     []migrate.Code
		}{
			{7, "host-a", "host-a", []migrate.Code{migrate.CodeSameHost}},
			{8, "host-a", "host-b", []migrate.Code{migrate.CodeNoSuchProcess}},
			{7, "host-a", "host-x", []migrate.Code{migrate.CodeNoSuchHost}},
			{7, "host-x", "host-x", []migrate.Code{migrate.CodeSameHost, migrate.CodeNoSuchHost}},
			{7, "host-x", "host-b", []migrate.Code{migrate.CodeNoSuchHost}},
		} {
			created, err := client.Move(t.Context(), api.MoveRequest{PID: tt.pid, From: tt.from, To: tt.to})
			if err != nil {
				t.Fatal(err)
			}
			r := c.Settle(client, created.ID, migrate.StateRefused)
			var codes []migrate.Code
			for _, b := range r.Blockers {
				codes = append(codes, b.Code)
			}
			if diff := cmp.Diff(tt.want, codes); diff != "" {
				t.Errorf("%+v: %s", tt, diff)
			}
		}
		refused, err := client.Migrations(t.Context(), migrate.StateRefused)
		done, err2 := client.Migrations(t.Context(), migrate.StateDone)
		if err != nil || err2 != nil || len(refused) != 5 || len(done) != 0 {
			t.Errorf("%d refused, %d done, %v, %v", len(refused), len(done), err, err2)
		}
		c.World.MustRunOnlyOn("host-a", 7)
	})

	t.Run("rehearsal", func(t *testing.T) {
		created, err := client.Move(t.Context(), api.MoveRequest{
			PID: 7, From: "host-a", To: "host-b", Options: migrate.Options{Rehearse: true},
		})
		if err != nil {
			t.Fatal(err)
		}
		if r := c.Settle(client, created.ID, migrate.StateRehearsed); r.DowntimeMS != 9 {
			t.Errorf("downtime %v", r.DowntimeMS)
		}
		c.World.MustRunOnlyOn("host-a", 7)
	})

	t.Run("by way of an agent", func(t *testing.T) {
		agent := c.Client(trust.RoleAgent, "host-a")
		created, err := agent.Move(t.Context(), api.MoveRequest{PID: 7, To: "host-b"})
		if err != nil || created.From != "host-a" {
			t.Fatalf("got %+v, %v", created, err)
		}
		c.Settle(agent, created.ID, migrate.StateDone)
		check, err := c.Client(trust.RoleAgent, "host-b").Check(t.Context(), api.CheckRequest{PID: 7})
		if err != nil || !check.Movable {
			t.Errorf("check where it is now: %+v, %v", check, err)
		}
		for _, err := range []error{
			second(client.Move(t.Context(), api.MoveRequest{PID: 7, To: "host-a"})),
			second(client.Check(t.Context(), api.CheckRequest{PID: 7})),
		} {
			if code(err) != api.CodeInvalid || !strings.Contains(err.Error(), "from is missing") {
				t.Errorf("without a source: %v", err)
			}
		}
	})

	t.Run("idempotency", func(t *testing.T) {
		move := api.MoveRequest{PID: 9, From: "host-b", To: "host-a", Key: "k"}
		first, err := client.Move(t.Context(), move)
		if err != nil {
			t.Fatal(err)
		}
		c.Settle(client, first.ID, migrate.StateDone)
		again, err := client.Move(t.Context(), move)
		if err != nil || again.ID != first.ID {
			t.Errorf("the same request made %s after %s, %v", again.ID, first.ID, err)
		}
		move.PID = 7
		if _, err := client.Move(t.Context(), move); code(err) != api.CodeKeyReused {
			t.Errorf("another request with the key: %v", err)
		}
	})

	t.Run("viewers change nothing", func(t *testing.T) {
		viewer := c.Client(trust.RoleViewer, "eve")
		if _, err := viewer.Hosts(t.Context()); err != nil {
			t.Error(err)
		}
		if _, err := viewer.Move(t.Context(), api.MoveRequest{PID: 7, From: "host-b", To: "host-a"}); code(err) != api.CodeForbidden {
			t.Errorf("a viewer moved a process: %v", err)
		}
	})

	t.Run("agents vouch for nobody", func(t *testing.T) {
		if _, err := c.Client(trust.RoleAgent, "host-a").Fence(t.Context(), "m9"); code(err) != api.CodeForbidden {
			t.Errorf("an agent fenced a host: %v", err)
		}
	})

	t.Run("nothing of that name", func(t *testing.T) {
		_, missing := client.Migration(t.Context(), "m9")
		_, cancelled := client.Cancel(t.Context(), "m9")
		_, fenced := client.Fence(t.Context(), "m9")
		var watched error
		for _, err := range client.Watch(t.Context(), "m9") {
			watched = err
		}
		for what, err := range map[string]error{"show": missing, "cancel": cancelled, "fence": fenced, "watch": watched} {
			if code(err) != api.CodeNotFound {
				t.Errorf("%s: %v", what, err)
			}
		}
	})
}

func second[T any](_ T, err error) error { return err }

// TestBadRequests sends what no client of ours does.
func TestBadRequests(t *testing.T) {
	c := clustertest.Start(t, 1)
	transport := &http.Transport{TLSClientConfig: c.CA.Credentials(t, trust.RoleOperator, "anna").Client(trust.AllowRoles(trust.RoleCoordinator))}
	defer transport.CloseIdleConnections()
	base := fmt.Sprintf("https://127.0.0.1:%d", c.Config("one").HTTPPort)
	for _, tt := range []struct {
		name, method, path, body string
		header                   http.Header
		status                   int
		code, detail             string
	}{
		{"no JSON", "POST", "/v1/migrations", "{", nil, 400, api.CodeInvalid, ""},
		{"no PID", "POST", "/v1/migrations", `{"from":"a","to":"b"}`, nil, 422, api.CodeInvalid, "pid"},
		{"PID of more than 32 bits", "POST", "/v1/migrations", `{"pid":4294967296,"from":"a","to":"b"}`, nil, 422, api.CodeInvalid, "pid 4294967296: expected number <= 2147483647"},
		{"no destination", "POST", "/v1/migrations", `{"pid":7,"from":"a"}`, nil, 422, api.CodeInvalid, "to"},
		{"unknown field", "POST", "/v1/migrations", `{"pid":7,"from":"a","to":"b","x":1}`, nil, 422, api.CodeInvalid, "x"},
		{"unknown compression", "POST", "/v1/migrations", `{"pid":7,"from":"a","to":"b","options":{"compress":"lzw"}}`, nil, 422, api.CodeInvalid, "lzw"},
		{"negative rounds", "POST", "/v1/check", `{"pid":7,"from":"a","to":"b","options":{"max_rounds":-1}}`, nil, 422, api.CodeInvalid, "rounds"},
		{"long name", "POST", "/v1/check", `{"pid":7,"from":"` + strings.Repeat("a", 64) + `"}`, nil, 422, api.CodeInvalid, "from"},
		{"two keys", "POST", "/v1/migrations", `{"pid":7,"from":"a","to":"b","key":"k"}`, http.Header{api.KeyHeader: {"l"}}, 422, api.CodeInvalid, "different idempotency keys"},
		{"unknown state", "GET", "/v1/migrations?state=LOST", "", nil, 422, api.CodeInvalid, "LOST"},
		{"unknown parameter", "GET", "/v1/migrations?sate=DONE", "", nil, 422, api.CodeInvalid, "sate"},
		{"unknown path", "GET", "/v2", "", nil, 404, api.CodeNotFound, "/v2"},
		{"on behalf of others", "GET", "/v1/hosts", "", http.Header{"Pagurus-On-Behalf-Of": {"pagurus://operator/otto"}}, 403, api.CodeForbidden, "anna"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), tt.method, base+tt.path, strings.NewReader(tt.body))
			if err != nil {
				t.Fatal(err)
			}
			req.Header = tt.header.Clone()
			if req.Header == nil {
				req.Header = http.Header{}
			}
			if tt.body != "" {
				req.Header.Set("Content-Type", "application/json")
			}
			resp, err := transport.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			content, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			var problem api.Error
			if err := json.Unmarshal(content, &problem); err != nil {
				t.Fatalf("%s: %v", content, err)
			}
			if resp.StatusCode != tt.status || problem.Status != tt.status || problem.Code != tt.code || !strings.Contains(problem.Error(), tt.detail) {
				t.Errorf("answered %s: %s", resp.Status, content)
			}
			if kind := resp.Header.Get("Content-Type"); kind != "application/problem+json" {
				t.Errorf("answered with %s", kind)
			}
		})
	}
}

// TestOnlyOurCertificates: without a certificate of the cluster nobody gets as
// far as HTTP.
func TestOnlyOurCertificates(t *testing.T) {
	c := clustertest.Start(t, 1)
	other := clustertest.New(t) // another cluster's authority
	config := other.CA.Credentials(t, trust.RoleOperator, "anna").Client(trust.AllowRoles(trust.RoleCoordinator))
	config.VerifyConnection = nil // we trust them; they do not trust us
	transport := &http.Transport{TLSClientConfig: config}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, fmt.Sprintf("https://127.0.0.1:%d/v1/status", c.Config("one").HTTPPort), nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp, err := transport.RoundTrip(req); err == nil {
		resp.Body.Close()
		t.Errorf("answered %s", resp.Status)
	}
}

// TestWatch sees the phases of a migration in their order, and each report once.
func TestWatch(t *testing.T) {
	c := clustertest.Start(t, 1)
	c.World.AddProcess("host-a", 7)
	seen := make(chan migrate.State, 100)
	c.World.OnStep(func(_ string, step agenttest.Step) {
		// No step is taken before the watcher has seen where it is.
		want, ok := map[agenttest.Step]migrate.State{
			agenttest.Reserve: migrate.StatePreflight, agenttest.Freeze: migrate.StatePrecopy,
			agenttest.Prepare: migrate.StateFrozen, agenttest.Run: migrate.StateCommitted,
		}[step]
		for ok {
			select {
			case state := <-seen:
				ok = state != want
			case <-time.After(clustertest.Patience):
				t.Errorf("%s was never seen", want)
				return
			}
		}
	})
	client := c.Operator()
	created, err := client.Move(t.Context(), api.MoveRequest{PID: 7, From: "host-a", To: "host-b"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), clustertest.Patience)
	defer cancel()
	var states []migrate.State
	var last []byte
	for r, err := range client.Watch(ctx, created.ID) {
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Contains(states, r.State) {
			states = append(states, r.State)
		}
		if r.State == migrate.StatePrecopy && r.Progress != nil && r.Progress.RoundPages != 100 {
			t.Errorf("progress %+v", r.Progress)
		}
		content, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Equal(content, last) {
			t.Errorf("twice: %s", content)
		}
		last = content
		seen <- r.State
	}
	// PENDING may be over before the first look, as may PREPARED be.
	states = slices.DeleteFunc(states, func(s migrate.State) bool { return s == migrate.StatePending || s == migrate.StatePrepared })
	want := []migrate.State{migrate.StatePreflight, migrate.StatePrecopy, migrate.StateFrozen, migrate.StateCommitted, migrate.StateDone}
	if diff := cmp.Diff(want, states); diff != "" {
		t.Error(diff)
	}
}

// TestCancel cancels in each phase, by way of a server that does not lead.
func TestCancel(t *testing.T) {
	c := clustertest.Start(t, 3)
	client := c.Client(trust.RoleOperator, "anna", c.Follower())
	pid := 300
	for _, at := range []struct {
		host string
		step agenttest.Step
		late bool
	}{
		{"host-a", agenttest.Inspect, false},
		{"host-b", agenttest.Reserve, false},
		{"host-a", agenttest.Start, false},
		{"host-a", agenttest.Progress, false},
		{"host-a", agenttest.Freeze, false},
		{"host-b", agenttest.Prepare, false},
		{"host-a", agenttest.Promised, false},
		{"host-b", agenttest.Run, true},
		{"host-b", agenttest.Running, true},
		{"host-a", agenttest.Dispose, true},
	} {
		t.Run(string(at.step), func(t *testing.T) {
			pid++
			c.World.AddProcess("host-a", pid)
			reached, goOn := make(chan struct{}), make(chan struct{})
			once(c.World, at.host, at.step, func() {
				close(reached)
				<-goOn
			})
			created, err := client.Move(t.Context(), api.MoveRequest{PID: pid, From: "host-a", To: "host-b"})
			if err != nil {
				t.Fatal(err)
			}
			c.Reach("the step", reached)
			r, err := client.Cancel(t.Context(), created.ID)
			close(goOn)
			if at.late {
				if code(err) != api.CodeTooLate {
					t.Errorf("cancelled after COMMIT: %+v, %v", r, err)
				}
				c.Settle(client, created.ID, migrate.StateDone)
				c.World.MustRunOnlyOn("host-b", pid)
				return
			}
			if err != nil || r.State != migrate.StateAborted {
				t.Fatalf("got %+v, %v", r, err)
			}
			if r := c.Settle(client, created.ID, migrate.StateAborted); !strings.Contains(r.Reason, "cancelled by anna") {
				t.Errorf("reason %q", r.Reason)
			}
			if _, err := client.Cancel(t.Context(), created.ID); err != nil {
				t.Errorf("cancelled once more: %v", err)
			}
			c.Eventually("the agents may forget it", func() bool { return c.World.Remembered() == 0 })
			c.World.MustRunOnlyOn("host-a", pid)
		})
	}
}

// TestDecisionRace cancels in the moment in which the last word for COMMIT
// arrives. Whichever is written first stands, and everybody is told the same.
func TestDecisionRace(t *testing.T) {
	c := clustertest.Start(t, 3)
	clients := []*api.Client{c.Client(trust.RoleOperator, "anna", c.Leader()), c.Client(trust.RoleOperator, "bert", c.Follower())}
	for pid := 400; pid < 420; pid++ {
		c.World.AddProcess("host-a", pid)
		reached := make(chan struct{})
		once(c.World, "host-a", agenttest.Promised, func() { close(reached) })
		created, err := clients[0].Move(t.Context(), api.MoveRequest{PID: pid, From: "host-a", To: "host-b"})
		if err != nil {
			t.Fatal(err)
		}
		c.Reach("the step", reached)
		errs := make(chan error, len(clients))
		for _, client := range clients {
			go func() {
				_, err := client.Cancel(t.Context(), created.ID)
				errs <- err
			}()
		}
		cancelled := 0
		for range clients {
			if err := <-errs; err == nil {
				cancelled++
			} else if code(err) != api.CodeTooLate {
				t.Error(err)
			}
		}
		r := c.Await(clients[0], created.ID, func(r migrate.Report) bool { return r.Settled })
		switch {
		case r.State == migrate.StateDone && cancelled == 0:
			c.World.MustRunOnlyOn("host-b", pid)
		case r.State == migrate.StateAborted && cancelled == 1:
			c.World.MustRunOnlyOn("host-a", pid)
		default:
			t.Errorf("%s while %d were told that they cancelled it", r.State, cancelled)
		}
	}
}
