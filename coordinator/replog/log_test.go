package replog

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/raft"
	"go.uber.org/goleak"

	"github.com/pagurus-project/pagurus/coordinator/clustertest/certtest"
	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/trust"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t *testing.T, ca *certtest.Authority, dir string) (*Log, error) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return Open(Config{
		Name: "one", Dir: dir, Listener: listener, Credentials: ca.Credentials(t, trust.RoleCoordinator, "one"),
		Address: func(string) (string, bool) { return listener.Addr().String(), true },
		Keep:    10, Timing: Timing{Heartbeat: 50 * time.Millisecond, Election: 50 * time.Millisecond, Lease: 50 * time.Millisecond},
		Changed: func(migrate.Record, []migrate.Effect) {}, AddressesChanged: func() {}, Logger: slog.New(slog.DiscardHandler),
	})
}

// lead runs f while l leads and returns when f has returned.
func lead(t *testing.T, l *Log, f func(ctx context.Context, term uint64)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	ran := false
	l.Lead(ctx, func(ctx context.Context, term uint64) {
		f(ctx, term)
		ran = true
		cancel()
	})
	if !ran {
		t.Fatal("never led")
	}
}

func TestLog(t *testing.T) {
	ca, dir := certtest.New(t), t.TempDir()
	l, err := open(t, ca, dir)
	if err != nil {
		t.Fatal(err)
	}
	if l.Bootstrapped() {
		t.Error("bootstrapped before it was")
	}
	if _, err := l.Apply(t.Context(), "m1", migrate.Running{}); !errors.Is(err, ErrNotLeader) {
		t.Errorf("apply without a leader: %v", err)
	}
	if err := l.Barrier(t.Context()); !errors.Is(err, ErrNotLeader) {
		t.Errorf("barrier without a leader: %v", err)
	}
	name, changed := l.Leader()
	if name != "" {
		t.Errorf("leader is %q", name)
	}
	if err := l.Bootstrap([]Server{{Name: "one", Address: "127.0.0.1:1"}}); err != nil {
		t.Fatal(err)
	}
	<-changed

	var first uint64
	lead(t, l, func(ctx context.Context, term uint64) {
		first = term
		r, err := l.Apply(ctx, "m1", migrate.Created{ID: "m1", PID: 7, From: "a", To: "b", At: at})
		if err != nil || r.State != migrate.StatePending {
			t.Errorf("got %v, %v", r.State, err)
		}
		r, err = l.Apply(ctx, "m1", migrate.Running{})
		if !errors.Is(err, migrate.ErrOutOfPlace) || r.State != migrate.StatePending {
			t.Errorf("got %v, %v", r.State, err)
		}
		for range 2 {
			if a, err := l.ApplyAddress(ctx, addressEvents[0]); err != nil || a.Host != "a" {
				t.Errorf("got %+v, %v", a, err)
			}
		}
		if a, err := l.ApplyAddress(ctx, migrate.AddressAdded{Prefix: prefix, Host: "b", At: at}); !errors.Is(err, migrate.ErrAddressTaken) || a.Host != "a" {
			t.Errorf("got %+v, %v", a, err)
		}
		if err := l.Barrier(ctx); err != nil {
			t.Error(err)
		}
		if name, _ := l.Leader(); name != "one" {
			t.Errorf("leader is %q", name)
		}
	})
	if got, want := l.Servers(), []Server{{Name: "one", Address: "127.0.0.1:1", Voter: true}}; !cmp.Equal(got, want) {
		t.Errorf("servers are %v", got)
	}
	if err := l.TransferLeadership(); err != nil {
		t.Errorf("with nobody to hand over to: %v", err)
	}

	// One directory, one coordinator.
	if second, err := open(t, ca, dir); err == nil || !strings.Contains(err.Error(), "another coordinator") {
		t.Errorf("opened twice: %v", err)
		second.Close()
	}

	// Half from a snapshot, half from the log after it.
	if err := l.raft.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Apply(t.Context(), "m1", migrate.PreflightDone{Epoch: first}); err != nil {
		t.Fatal(err)
	}
	if _, err := l.ApplyAddress(t.Context(), addressEvents[1]); err != nil {
		t.Fatal(err)
	}
	want := l.Records()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l, err = open(t, ca, dir)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if !l.Bootstrapped() {
		t.Error("not bootstrapped after a restart")
	}
	lead(t, l, func(_ context.Context, term uint64) {
		if term <= first {
			t.Errorf("term %d after %d", term, first)
		}
		if diff := cmp.Diff(want, l.Records(), addrs); diff != "" {
			t.Error(diff)
		}
		all, index := l.Addresses()
		if diff := cmp.Diff([]migrate.Address{address}, all, addrs); diff != "" || index == 0 {
			t.Errorf("as of %d\n%s", index, diff)
		}
	})
}

func TestOnlyCoordinatorsReachRaft(t *testing.T) {
	ca := certtest.New(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := newStream(listener, ca.Credentials(t, trust.RoleCoordinator, "one"))
	defer s.Close()
	accepted := make(chan net.Conn)
	go func() {
		defer close(accepted)
		for {
			conn, err := s.Accept()
			if err != nil {
				return
			}
			accepted <- conn
		}
	}()
	// Nobody waits for one who says nothing.
	silent, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()

	anyone := func(trust.Identity) error { return nil }
	agent, err := tls.Dial("tcp", listener.Addr().String(), ca.Credentials(t, trust.RoleAgent, "host-a").Client(anyone))
	if err == nil {
		// In TLS 1.3 a client learns only by reading that it was refused.
		_, err = agent.Read(make([]byte, 1))
		agent.Close()
	}
	if err == nil || errors.Is(err, io.EOF) {
		t.Errorf("an agent was let in: %v", err)
	}

	peer := stream{
		client: ca.Credentials(t, trust.RoleCoordinator, "two").Client(trust.AllowRoles(trust.RoleCoordinator)),
		conns:  map[*streamConn]struct{}{},
	}
	ours, err := peer.Dial(raft.ServerAddress(listener.Addr().String()), 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	theirs := <-accepted
	theirs.Close()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, open := <-accepted; open {
		t.Error("accepted after Close")
	}
}
