package lab

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// fakeDaemons makes a directory with stand-ins for the daemons.
func fakeDaemons(t *testing.T) string {
	t.Helper()
	needRoot(t)
	bin := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{agentProgram, coordinatorProgram} {
		if err := os.Symlink(self, filepath.Join(bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	return bin
}

func TestDaemonsFindEachOther(t *testing.T) {
	l := up(t, Options{Bin: fakeDaemons(t), Hosts: 2})
	want := Status{ID: l.ID(), Leader: "host-a", Hosts: []HostStatus{
		{Name: "host-a", Address: "10.77.0.1", Agent: "alive"},
		{Name: "host-b", Address: "10.77.0.2", Agent: "alive"},
	}}
	if diff := cmp.Diff(want, l.Status(t.Context())); diff != "" {
		t.Error(diff)
	}
	// An agent's socket is answered on its host, for programs there.
	for _, name := range []string{"host-a", "host-b"} {
		run(t, host(t, l, name), "test", "-S", AgentSocket)
	}
	if err := host(t, l, "host-a").Daemon("agent").Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := l.Status(t.Context()).Leader; got != "host-a" {
		t.Errorf("with one agent of two gone, the leader is %q", got)
	}
}

func TestUpSaysWhoIsMissing(t *testing.T) {
	bin := fakeDaemons(t)
	if err := os.WriteFile(filepath.Join(bin, "refuse-host-b"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	const id = "one-missing"
	l, err := Up(t.Context(), Options{Name: id, Bin: bin, Hosts: 2, Timeout: 2 * time.Second})
	if err == nil {
		t.Fatal("a lab came up without one of its agents", l.Down(t.Context()))
	}
	for _, want := range []string{"agent of host-b has not joined", "this agent never joins"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error lacks %q: %v", want, err)
		}
	}
	if strings.Contains(err.Error(), "agent of host-a") {
		t.Errorf("the wrong one is blamed: %v", err)
	}
	if left := tracesOf(t, id, nil); left.Directory || left.Groups || left.Processes != nil {
		t.Errorf("left behind: %+v", left)
	}
}

func TestStatusWithoutDaemons(t *testing.T) {
	l := bare(t, 1)
	want := Status{ID: l.ID(), Hosts: []HostStatus{{Name: "host-a", Address: "10.77.0.1", Agent: unknown}}}
	if diff := cmp.Diff(want, l.Status(t.Context())); diff != "" {
		t.Error(diff)
	}
}

func TestUpWithoutPrograms(t *testing.T) {
	needRoot(t)
	if _, err := Up(t.Context(), Options{Bin: t.TempDir()}); err == nil || !strings.Contains(err.Error(), "make build") {
		t.Errorf("Up without daemons to start: %v", err)
	}
}
