package lab

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestOptions(t *testing.T) {
	for _, tt := range []struct {
		o                   Options
		hosts, coordinators int
		err                 string
	}{
		{Options{}, 3, 3, ""},
		{Options{Hosts: 1}, 1, 1, ""},
		{Options{Hosts: 2}, 2, 1, ""},
		{Options{Hosts: 4}, 4, 3, ""},
		{Options{Hosts: 5, Coordinators: 5}, 5, 5, ""},
		{Options{Hosts: 27}, 0, 0, "1 to 26"},
		{Options{Hosts: -1}, 0, 0, "1 to 26"},
		{Options{Coordinators: 2}, 0, 0, "odd"},
		{Options{Coordinators: 5}, 0, 0, "odd"},
		{Options{Name: "../x"}, 0, 0, "lower-case"},
		{Options{Name: strings.Repeat("x", 33)}, 0, 0, "lower-case"},
	} {
		got, err := tt.o.resolved()
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%+v: %v, want an error with %q", tt.o, err, tt.err)
			}
			continue
		}
		if err != nil || got.Hosts != tt.hosts || got.Coordinators != tt.coordinators {
			t.Errorf("%+v: %d hosts, %d coordinators, %v", tt.o, got.Hosts, got.Coordinators, err)
		}
	}
}

func TestPlan(t *testing.T) {
	p := newPlan("x", Options{Hosts: maxHosts, Coordinators: 3})
	seen := make(map[any]string)
	for _, h := range p.Hosts {
		for _, mark := range []any{h.Name, h.Address, h.Address6, h.Monotonic} {
			if other, ok := seen[mark]; ok && h.Name != switchName {
				t.Errorf("%s and %s share %v", other, h.Name, mark)
			}
			seen[mark] = h.Name
		}
		if h.Monotonic <= 0 || h.Boottime <= h.Monotonic {
			t.Errorf("clocks of %s are ahead by %v and %v", h.Name, h.Monotonic, h.Boottime)
		}
	}
	last := p.Hosts[25]
	if last.Name != "host-z" || last.Address.String() != "10.77.0.26/24" || last.Address6.String() != "fd77::26/64" || !last.Agent || last.Coordinator {
		t.Errorf("the last host is %+v", last)
	}
	client, ok := p.host(clientName)
	if !ok || client.Address.String() != "10.77.0.250/24" || client.Agent {
		t.Errorf("the client is %+v", client)
	}
}

// What the agent says that the machine lacks is the lab's error, and nothing is
// made.
func TestProbe(t *testing.T) {
	const line = "migrate-agent: this machine cannot take part in migrations: no dirty tracking"
	agent := func(script string) string {
		bin := t.TempDir()
		for _, name := range []string{agentProgram, coordinatorProgram} {
			if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\n"+script), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		return bin
	}
	bin := agent("[ \"$*\" = --probe ] || exit 1\necho '" + line + "' >&2; exit 2\n")
	if err := probe(t.Context(), bin); err == nil || err.Error() != line {
		t.Errorf("a machine that lacks something: %v", err)
	}
	if os.Geteuid() == 0 {
		if _, err := Up(t.Context(), Options{Name: "probed", Bin: bin}); err == nil || err.Error() != line {
			t.Errorf("a lab on it: %v", err)
		}
		if _, err := os.Stat(directory("probed")); err == nil {
			t.Error("the lab has left its directory")
		}
	}
	if err := probe(t.Context(), agent("exit 0\n")); err != nil {
		t.Errorf("one that lacks nothing: %v", err)
	}
}
