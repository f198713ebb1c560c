package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/pagurus-project/pagurus/e2e/lab"
)

// TestMain lets the test binary be migratectl, also as PID 1 of a lab host.
func TestMain(m *testing.M) {
	lab.Main()
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "cmd/migratectl: not root: scripts that make a lab are left out")
	}
	testscript.Main(m, map[string]func(){"migratectl": main})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			// A name of its own, so that scripts may run side by side.
			id := fmt.Sprintf("%s-%d", filepath.Base(e.WorkDir), os.Getpid())
			e.Setenv("MIGRATE_LAB", id)
			// A script that fails half way leaves its lab up.
			e.Defer(func() { _ = lab.Remove(context.Background(), id) })
			return nil
		},
		Condition: func(name string) (bool, error) {
			if name != "root" {
				return false, fmt.Errorf("unknown condition %s", name)
			}
			return os.Geteuid() == 0, nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"api": serveAPI},
	})
}

func TestExitCode(t *testing.T) {
	for _, tt := range []struct {
		err    error
		code   int
		stderr string
	}{
		{nil, 0, ""},
		{errors.New("no such flag"), 1, "migratectl: no such flag\n"},
		{&exitError{code: exitRefused, err: errors.New("refused")}, 2, "migratectl: refused\n"},
		{fmt.Errorf("wrapped: %w", &exitError{code: exitUndecided}), 4, ""},
		{fmt.Errorf("waiting: %w", context.Canceled), 1, "migratectl: interrupted\n"},
	} {
		var stderr bytes.Buffer
		if code := exitCode(tt.err, &stderr); code != tt.code || stderr.String() != tt.stderr {
			t.Errorf("%v: code %d and %q, want %d and %q", tt.err, code, stderr.String(), tt.code, tt.stderr)
		}
	}
}

func TestOutputReportsWhatCouldNotBeWritten(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	for _, asJSON := range []bool{true, false} {
		if err := (output{to: full, json: asJSON}).write(1, func(w io.Writer) { fmt.Fprint(w, "1") }); err == nil {
			t.Errorf("JSON %v: writing to a full device is no error", asJSON)
		}
	}
}

func TestTarget(t *testing.T) {
	const id = "target-test"
	agent := filepath.Join(t.TempDir(), "agent.sock")
	if err := os.WriteFile(agent, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	none := agent + ".none"
	inLab := target{}
	if os.Geteuid() == 0 {
		l, err := lab.Up(t.Context(), lab.Options{Name: id, Hosts: 2, NoDaemons: true})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := l.Down(context.WithoutCancel(t.Context())); err != nil {
				t.Error(err)
			}
		})
		inLab = target{sockets: []string{"/tmp/pagurus-lab-" + id + "/host-a.sock", "/tmp/pagurus-lab-" + id + "/host-b.sock"}}
	}
	for _, tt := range []struct {
		name           string
		flags          settings
		server, envLab string
		agent          string
		want           target
		needsLab       bool
	}{
		{"flag server", settings{server: "a:1"}, "b:2", id, agent, target{server: "a:1"}, false},
		{"flag lab", settings{lab: id}, "b:2", "", agent, inLab, true},
		{"environment server", settings{}, "b:2", id, agent, target{server: "b:2"}, false},
		{"environment lab", settings{}, "", id, agent, inLab, true},
		{"agent", settings{}, "", "", agent, target{sockets: []string{agent}, local: true}, false},
	} {
		if tt.needsLab && os.Geteuid() != 0 {
			continue
		}
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("MIGRATE_SERVER", tt.server)
			t.Setenv("MIGRATE_LAB", tt.envLab)
			got, err := tt.flags.target(tt.agent)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(target{})); diff != "" {
				t.Error(diff)
			}
		})
	}
	t.Setenv("MIGRATE_SERVER", "")
	t.Setenv("MIGRATE_LAB", "no-such-lab")
	if _, err := (&settings{}).target(none); !errors.Is(err, lab.ErrNone) {
		t.Errorf("a lab that does not exist: %v", err)
	}
}
