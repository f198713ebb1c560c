package e2e

import (
	"context"
	"fmt"
	"maps"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/e2e/testbed"
	"github.com/pagurus-project/pagurus/migrate"
)

// trips is how often a program is moved there and back.
const trips = 5

// TestPrograms moves real programs back and forth while they work, and asks
// each for its own opinion.
func TestPrograms(t *testing.T) {
	for _, p := range []struct {
		name  string
		needs string // a program that may be missing
		args  []string
		flags []string
	}{
		{name: "memory", args: []string{"$BIN/workload", "memory", "-size", "128MiB", "-churn", "-ask", "$ASK"}, flags: []string{"--verify"}},
		{name: "memory of 1 GiB", args: []string{"$BIN/workload", "memory", "-size", "1GiB", "-threads", "2", "-ask", "$ASK"}},
		{name: "avx", args: []string{"$BIN/workload", "float", "-unit", "avx", "-ask", "$ASK"}, flags: []string{"--verify"}},
		{name: "widest vectors", args: []string{"$BIN/workload", "float", "-threads", "3", "-ask", "$ASK"}},
		{name: "system calls", args: []string{"$BIN/workload", "epoll", "-ask", "$ASK"}, flags: []string{"--verify"}},
		{name: "go", args: []string{"$BIN/workload", "gosched", "-ask", "$ASK"}},
		{name: "python", needs: "python3", args: []string{"python3", script(t, "threads.py"), "$ASK", "$DIR"}},
		{name: "sqlite with a log", needs: "python3", args: []string{"python3", script(t, "database.py"), "$ASK", "$DIR/db", "wal"}},
		{name: "sqlite with a journal", needs: "python3", args: []string{"python3", script(t, "database.py"), "$ASK", "$DIR/db", "delete"}},
		{name: "node", needs: "node", args: []string{"node", script(t, "files.js"), "$ASK", "$DIR"}},
		{name: "shell", needs: "sh", args: []string{"sh", script(t, "loop.sh"), "$ASK", "$DIR"}},
		{name: "java", needs: "javac", args: []string{"java", "-Xmx128m", "-cp", "$DIR/..", "Threads", "$ASK", "$DIR"}},
	} {
		t.Run(p.name, func(t *testing.T) {
			if p.needs != "" {
				need(t, p.needs)
			}
			if p.needs == "javac" {
				compileJava(t)
			}
			ctx := limit(t, 3*time.Minute)
			process := start(ctx, t, "host-a", p.args...)
			for range trips {
				for _, to := range []string{"host-b", "host-a"} {
					moved(ctx, t, process, to, p.flags...)
				}
			}
			content(ctx, t, process)
		})
	}
}

// need skips a test for which a program is missing.
func need(t *testing.T, program string) {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		t.Skipf("there is no %s on this machine", program)
	}
}

// script is the path of a program that lies beside the tests.
func script(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func compileJava(t *testing.T) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), "javac", "-d", bed.Bin, script(t, "Threads.java")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// start starts a program for the time of a test, which fails if the program
// leaves anything behind on any host.
func start(ctx context.Context, t *testing.T, host string, args ...string) *testbed.Process {
	t.Helper()
	before, err := bed.Traces()
	if err != nil {
		t.Fatal(err)
	}
	p, err := bed.Start(ctx, host, args...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
		if err := p.End(ctx, unix.SIGKILL); err != nil {
			t.Error(err)
		}
		nothingLeft(ctx, t, before)
	})
	return p
}

// nothingLeft waits until the hosts look as before, where something may have been going
// away.
func nothingLeft(ctx context.Context, t *testing.T, before []string) {
	t.Helper()
	before = slices.DeleteFunc(before, func(trace string) bool { return strings.Contains(trace, testbed.HoldDevice) })
	var now []string
	err := testbed.Await(ctx, "hosts to look as before", func() (bool, error) {
		var err error
		now, err = bed.Traces()
		return slices.Equal(before, now), err
	})
	if err != nil {
		t.Errorf("%v:\n%s", err, cmp.Diff(before, now))
	}
}

// moved moves a process; it is an error if it does not arrive alone.
func moved(ctx context.Context, t *testing.T, p *testbed.Process, to string, flags ...string) migrate.Report {
	t.Helper()
	from := p.Host
	r, err := bed.Move(ctx, p, to, flags...)
	if err != nil {
		t.Fatal(err)
	}
	if r.State != migrate.StateDone || r.Code != 0 {
		t.Fatalf("moving %d from %s to %s: %s, exit code %d: %s%s", p.PID, from, to, r.State, r.Code, r.Stderr, bed.Logs(from, to))
	}
	t.Logf("%s to %s: %d rounds, %d bytes, stood still for %.1f ms of %.0f: %s", from, to, len(r.Rounds), r.Bytes, r.DowntimeMS, r.TotalMS, phases(r.Report))
	alone(t, p)
	return r.Report
}

func phases(r migrate.Report) string {
	var text strings.Builder
	for _, name := range slices.Sorted(maps.Keys(r.PhasesMS)) {
		fmt.Fprintf(&text, " %s %.1f", name, r.PhasesMS[name])
	}
	return text.String()
}

// alone checks that a process runs where it should, and nowhere else.
func alone(t *testing.T, p *testbed.Process) {
	t.Helper()
	copies, err := p.Copies()
	if err != nil {
		t.Fatal(err)
	}
	if len(copies) != 1 || copies[0].Host != p.Host || copies[0].PID != p.PID || strings.Contains("ZTt", copies[0].State) {
		t.Fatalf("process %d should run on %s alone; there are: %+v\nit has written: %s", p.PID, p.Host, copies, p.Output())
	}
}

// content asks a process for its own opinion.
func content(ctx context.Context, t *testing.T, p *testbed.Process) {
	t.Helper()
	v, err := p.Verdict(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if !v.OK || v.Host != p.Host || v.PID != p.PID {
		t.Errorf("process %d on %s says of itself, as %d on %s: %q and %d more", p.PID, p.Host, v.PID, v.Host, v.Problems, v.Unlisted)
	}
	t.Logf("it has counted %v", v.Counts)
}
