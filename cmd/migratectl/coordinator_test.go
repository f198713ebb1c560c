package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/pagurus-project/pagurus/coordinator/api"
	"github.com/pagurus-project/pagurus/coordinator/clustertest"
	"github.com/pagurus-project/pagurus/coordinator/clustertest/agenttest"
	"github.com/pagurus-project/pagurus/coordinator/clustertest/certtest"
	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/trust"
)

// runWith runs migratectl with an environment of its own.
func runWith(t *testing.T, env []string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, problems bytes.Buffer
	cmd := exec.CommandContext(t.Context(), "migratectl", args...)
	cmd.Env, cmd.Stdout, cmd.Stderr = append(os.Environ(), env...), &out, &problems
	err := cmd.Run()
	if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), problems.String()
}

// decode reads one JSON document, and nothing else.
func decode[T any](t *testing.T, text string) (v T) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v: %q", err, text)
	}
	return v
}

// The verbs against a real coordinator, by TLS. What runs on its hosts is not
// real, so that this needs no root.
func TestRealCoordinator(t *testing.T) {
	c := clustertest.Start(t, 1)
	c.World.AddProcess("host-a", 42)
	files := c.CA.Files(t, trust.RoleOperator, "op")
	server := fmt.Sprintf("127.0.0.1:%d", c.Config("one").HTTPPort)
	env := []string{
		"MIGRATE_SERVER=" + server,
		"MIGRATE_CA=" + files.CA, "MIGRATE_CERT=" + files.Cert, "MIGRATE_KEY=" + files.Key,
	}
	migratectl := func(want int, args ...string) (stdout, stderr string) {
		t.Helper()
		code, stdout, stderr := runWith(t, env, args...)
		if code != want {
			t.Fatalf("migratectl %s: exit code %d, want %d\n%s%s", strings.Join(args, " "), code, want, stdout, stderr)
		}
		return stdout, stderr
	}

	out, _ := migratectl(exitDone, "hosts", "--json")
	if hosts := decode[api.Hosts](t, out).Hosts; len(hosts) != 2 || hosts[0].Name != "host-a" {
		t.Errorf("hosts: %+v", hosts)
	}
	out, _ = migratectl(exitDone, "move", "42", "--from", "host-a", "--to", "host-b", "--json")
	moved := decode[migrate.Report](t, out)
	if moved.State != migrate.StateDone {
		t.Errorf("moved: %+v", moved)
	}
	c.World.MustRunOnlyOn("host-b", 42)

	out, _ = migratectl(exitDone, "show", moved.ID, "--json")
	if shown := decode[migrate.Report](t, out); shown.ID != moved.ID || shown.State != migrate.StateDone {
		t.Errorf("shown: %+v", shown)
	}
	out, _ = migratectl(exitDone, "watch", moved.ID)
	if !strings.HasPrefix(out, "Moved ") {
		t.Errorf("watched: %q", out)
	}
	if _, problem := migratectl(exitUsage, "cancel", moved.ID); !strings.Contains(problem, "DONE") || strings.Count(problem, "\n") != 1 {
		t.Errorf("cancelled too late: %q", problem)
	}
	out, _ = migratectl(exitDone, "move", "42", "--from", "host-b", "--to", "host-a", "--detach")
	back := strings.TrimSpace(out)
	migratectl(exitDone, "watch", back)
	c.World.MustRunOnlyOn("host-a", 42)
	out, _ = migratectl(exitDone, "migrations", "--json")
	if list := decode[api.Migrations](t, out).Migrations; len(list) != 2 || list[0].ID != moved.ID || list[1].ID != back {
		t.Errorf("migrations: %+v", list)
	}
	_, problem := migratectl(exitRefused, "move", "42", "--from", "host-a", "--to", "host-z")
	if !strings.Contains(problem, "refused: no-such-host: host-z") {
		t.Errorf("to an unknown host: %q", problem)
	}
	out, _ = migratectl(exitRefused, "move", "42", "--from", "host-a", "--to", "host-z", "--json")
	if refused := decode[migrate.Report](t, out); refused.ID == "" || len(refused.Blockers) == 0 {
		t.Errorf("refused: %+v", refused)
	}
	// A number that no process has is refused like one that none has at present, by
	// an entry with an id; what no host can be called is not worth one.
	for _, pid := range []string{"0", "4194305"} {
		out, _ = migratectl(exitRefused, "move", pid, "--from", "host-a", "--to", "host-b", "--json")
		if r := decode[migrate.Report](t, out); r.ID == "" || len(r.Blockers) != 1 || r.Blockers[0].Code != migrate.CodeNoSuchProcess {
			t.Errorf("PID %s: %+v", pid, r)
		}
	}
	long := strings.Repeat("h", 64)
	for _, bad := range []struct{ pid, from, to, want string }{
		{"42", long, "host-b", "migratectl: validation failed: from " + long + ": expected length <= 63\n"},
		{"42", "host-a", long, "migratectl: validation failed: to " + long + ": expected length <= 63\n"},
	} {
		for _, verb := range []string{"move", "check"} {
			if _, problem := migratectl(exitRefused, verb, bad.pid, "--from", bad.from, "--to", bad.to); problem != bad.want {
				t.Errorf("%s %s: %q, want %q", verb, bad.pid, problem, bad.want)
			}
		}
	}
	for _, verb := range []string{"show", "watch", "cancel"} {
		if _, problem := migratectl(exitUsage, verb, "nothing"); problem != "migratectl: no such migration: nothing\n" {
			t.Errorf("%s of nothing: %q", verb, problem)
		}
	}

	// The flags come before the environment; no server of a list but one has
	// to be there.
	env = []string{"MIGRATE_SERVER=127.0.0.1:1"}
	flags := []string{"--server", "127.0.0.1:1," + server, "--ca", files.CA, "--cert", files.Cert, "--key", files.Key}
	migratectl(exitDone, append(flags, "hosts")...)

	// Certificates of another authority get no answer and change nothing.
	stranger := certtest.New(t).Files(t, trust.RoleOperator, "op")
	for ca, want := range map[string]string{files.CA: "loading the certificate", stranger.CA: "no coordinator answers"} {
		_, problem := migratectl(exitUsage, "move", "42", "--from", "host-a", "--to", "host-b",
			"--server", server, "--ca", ca, "--cert", stranger.Cert, "--key", stranger.Key, "--patience", "1ms")
		if !strings.Contains(problem, want) || strings.Count(problem, "\n") != 1 {
			t.Errorf("with a stranger's certificate: %q, want %q", problem, want)
		}
	}
	c.World.MustRunOnlyOn("host-a", 42)
}

// A coordinator that is lost in the middle of a move leaves it undecided for
// whoever asked for it; what became of it is known when it is back.
func TestUndecided(t *testing.T) {
	c := clustertest.Start(t, 1)
	c.World.AddProcess("host-a", 42)
	files := c.CA.Files(t, trust.RoleOperator, "op")
	env := []string{
		fmt.Sprintf("MIGRATE_SERVER=127.0.0.1:%d", c.Config("one").HTTPPort),
		"MIGRATE_CA=" + files.CA, "MIGRATE_CERT=" + files.Cert, "MIGRATE_KEY=" + files.Key,
	}
	var first sync.Once
	c.World.OnStep(func(_ string, step agenttest.Step) {
		if step == agenttest.Freeze {
			first.Do(func() { c.Kill("one") })
		}
	})
	code, stdout, stderr := runWith(t, env, "move", "42", "--from", "host-a", "--to", "host-b", "--patience", "100ms")
	told := regexp.MustCompile(`(?m)^migratectl: lost sight of migration (\w+), last seen [A-Z]+: .*; ask "migratectl show \w+"$`).FindStringSubmatch(stderr)
	if code != exitUndecided || told == nil || stdout != "" {
		t.Fatalf("exit code %d\n%s%s", code, stdout, stderr)
	}
	c.Boot("one")
	code, stdout, stderr = runWith(t, env, "watch", told[1], "--patience", clustertest.Patience.String())
	if code != exitDone || !strings.HasPrefix(stdout, "Moved 42 ") {
		t.Errorf("afterwards: exit code %d\n%s%s", code, stdout, stderr)
	}
	c.World.MustRunOnlyOn("host-b", 42)
}
