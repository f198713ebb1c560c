package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/e2e/lab/control"
)

func TestExec(t *testing.T) {
	l := bare(t, 1)
	a := host(t, l, "host-a")
	dir := t.TempDir()
	plain := dir + "/plain"
	if err := os.WriteFile(plain, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("MIGRATE_LAB", "from-outside")
	for _, tt := range []struct {
		name           string
		c              Command
		stdin          string
		status         int
		stdout, stderr string
	}{
		{"streams", Command{Args: []string{"sh", "-c", "cat; echo to stderr >&2; exit 7"}}, "through", 7, "through", "to stderr\n"},
		{"environment", Command{Args: []string{"sh", "-c", "echo $A"}, Env: []string{"A=1", "A=2", "PATH=/usr/bin:/bin"}}, "", 0, "2\n", ""},
		{"agent instead of lab", Command{Args: []string{"sh", "-c", "echo $MIGRATE_LAB"}}, "", 0, "\n", ""},
		{"directory", Command{Args: []string{"pwd"}, Dir: "/usr/bin"}, "", 0, "/usr/bin\n", ""},
		{"death by signal", Command{Args: []string{"sh", "-c", "kill -KILL $$"}}, "", 137, "", ""},
		{"long environment", Command{Args: []string{"sh", "-c", "echo ${#A}"}, Env: []string{"PATH=/bin", "A=" + strings.Repeat("x", 100000)}}, "", 0, "100000\n", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			streams := newStreams(t, tt.stdin)
			tt.c.Stdin, tt.c.Stdout, tt.c.Stderr = streams.files[0], streams.files[1], streams.files[2]
			status, err := a.Run(t.Context(), tt.c)
			stdout, stderr := streams.output()
			if err != nil || status != tt.status || stdout != tt.stdout || stderr != tt.stderr {
				t.Errorf("status %d, %q, %q, %v; want %d, %q, %q", status, stdout, stderr, err, tt.status, tt.stdout, tt.stderr)
			}
		})
	}
	if got := run(t, host(t, l, clientName), "sh", "-c", "echo $MIGRATE_LAB"); got != l.ID() {
		t.Errorf("a command on the client is told of lab %q", got)
	}
	for _, tt := range []struct {
		args   []string
		status int
	}{
		{[]string{"no-such-program"}, control.StatusNotFound},
		{[]string{dir + "/none"}, control.StatusNotFound},
		{[]string{plain}, control.StatusNotExecutable},
		{[]string{dir}, control.StatusNotExecutable},
	} {
		var refusal *control.Error
		if _, err := a.Exec(t.Context(), tt.args...); !errors.As(err, &refusal) || refusal.Status != tt.status {
			t.Errorf("running %s: %v, want status %d", tt.args, err, tt.status)
		}
	}
	var exit *ExitError
	if _, err := a.Exec(t.Context(), "sh", "-c", "echo why >&2; exit 9"); !errors.As(err, &exit) || exit.Status != 9 || exit.Stderr != "why\n" {
		t.Errorf("a command that fails: %v", err)
	}
	if _, err := a.Start(t.Context(), Command{Args: []string{"true"}, Dir: "/nowhere"}); err == nil || !strings.Contains(err.Error(), "/nowhere") {
		t.Errorf("starting in a directory that is not there: %v", err)
	}
	if _, err := l.Host("host-z"); err == nil || !strings.Contains(err.Error(), "host-a") {
		t.Errorf("looking for an unknown host: %v", err)
	}
}

// streams are pipes to and from a command.
type streams struct {
	t     *testing.T
	files [3]*os.File
	out   [2]*os.File
}

func newStreams(t *testing.T, stdin string) *streams {
	t.Helper()
	s := &streams{t: t}
	in, feed, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := feed.WriteString(stdin); err != nil {
		t.Fatal(err)
	}
	feed.Close()
	s.files[0] = in
	for i := range s.out {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		s.out[i], s.files[i+1] = r, w
	}
	for _, f := range append(s.files[:], s.out[:]...) {
		t.Cleanup(func() { f.Close() })
	}
	return s
}

// output is for after the command has ended.
func (s *streams) output() (stdout, stderr string) {
	var text [2]string
	for i, r := range s.out {
		s.files[i+1].Close()
		b, err := io.ReadAll(r)
		if err != nil {
			s.t.Error(err)
		}
		text[i] = string(b)
	}
	return text[0], text[1]
}

func TestSignalsReachTheCommand(t *testing.T) {
	a := host(t, bare(t, 1), "host-a")
	s := newStreams(t, "")
	signals := make(chan os.Signal)
	result := make(chan string, 1)
	go func() {
		status, err := a.Run(t.Context(), Command{
			Args: program(t, "signals"), Stdin: s.files[0], Stdout: s.files[1], Stderr: s.files[2], Signals: signals,
		})
		result <- fmt.Sprint(status, err)
	}()
	line := func() string {
		buffer := make([]byte, 64)
		n, err := s.out[0].Read(buffer)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(buffer[:n]))
	}
	if got := line(); got != "ready" {
		t.Fatalf("the command says %q", got)
	}
	for _, signal := range []syscall.Signal{unix.SIGINT, unix.SIGUSR1, unix.SIGTERM} {
		signals <- signal
		if got := line(); got != unix.SignalName(signal) {
			t.Errorf("sent %s, the command got %q", unix.SignalName(signal), got)
		}
	}
	if got := <-result; got != "3 <nil>" {
		t.Errorf("the command ended with %s", got)
	}
}

// Ending ctx kills the command and what it has started.
func TestExecEndsWithItsContext(t *testing.T) {
	a := host(t, bare(t, 1), "host-a")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := a.Exec(ctx, "sh", "-c", "sleep 1000 & sleep 1000")
		done <- err
	}()
	sleeping := func() int {
		out, _ := a.Exec(t.Context(), "sh", "-c", "cat /proc/[0-9]*/comm") // some end meanwhile
		return strings.Count(out, "sleep")
	}
	eventually(t, "both sleep", func() bool { return sleeping() == 2 })
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Exec says %v", err)
	}
	eventually(t, "none sleeps", func() bool { return sleeping() == 0 })
}

func TestDetached(t *testing.T) {
	l := bare(t, 1)
	a := host(t, l, "host-a")
	p, err := a.Start(t.Context(), Command{Args: []string{"sh", "-c", "cat; echo out; echo err >&2; exec sleep 1000"}})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "output", func() bool { return strings.Contains(content(t, p.Log), "out\nerr\n") })
	if got := run(t, a, "ls", fmt.Sprintf("/proc/%d/fd", p.PID)); got != "0\n1\n2" {
		t.Errorf("it has the descriptors %q", got)
	}
	stat := strings.Fields(run(t, a, "cat", fmt.Sprintf("/proc/%d/stat", p.PID)))
	if parent, session := stat[3], stat[5]; parent != "1" || session != strconv.Itoa(p.PID) {
		t.Errorf("process %d has parent %s and session %s", p.PID, parent, session)
	}
	for fd, want := range []string{"/dev/null", p.Log, p.Log} {
		if got := run(t, a, "readlink", fmt.Sprintf("/proc/%d/fd/%d", p.PID, fd)); got != want {
			t.Errorf("its descriptor %d is %s, want %s", fd, got, want)
		}
	}
	// Whoever else opens the log to append loses nothing of either.
	run(t, host(t, l, clientName), "sh", "-c", "echo elsewhere >> "+p.Log)
	if err := a.Kill(t.Context(), p.PID, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	eventually(t, "dead and reaped", func() bool { return a.Kill(t.Context(), p.PID, 0) != nil })
	if got := content(t, p.Log); !strings.HasSuffix(got, "elsewhere\n") || !strings.HasPrefix(got, "out\n") {
		t.Errorf("the log holds %q", got)
	}
	for _, pid := range []int{1, 0, -1, -p.PID} {
		if err := a.Kill(t.Context(), pid, unix.SIGTERM); err == nil {
			t.Errorf("sent a signal to %d", pid)
		}
	}
}

func TestOrphansAreReaped(t *testing.T) {
	a := host(t, bare(t, 1), "host-a")
	// Each inner shell loses its parent at once and ends at a time of its own.
	run(t, a, "sh", "-c", "for i in 1 2 3 4 5 6 7 8 9; do (sleep 0.0$i & sleep 0.02 &) ; done")
	eventually(t, "nothing but init and cat", func() bool {
		out, _ := a.Exec(t.Context(), "sh", "-c", "exec cat /proc/[0-9]*/status") // some end meanwhile
		return strings.Count(out, "\nPid:") == 2 && !strings.Contains(out, "zombie")
	})
}

func TestSupervision(t *testing.T) {
	a := host(t, bare(t, 1), "host-a")
	ctx := t.Context()
	d := a.Daemon("test")
	pid := func() int {
		pid, err := d.PID(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return pid
	}
	if _, err := d.PID(ctx); err == nil {
		t.Error("a daemon that nobody defined has a PID")
	}
	if err := d.Run(ctx, "/no/such/program"); err == nil {
		t.Error("a daemon runs that does not exist")
	}
	run(t, a, "mkdir", "/sys/fs/cgroup/abroad")
	// It leaves a child in its group and one elsewhere.
	emigrant := strings.Join(program(t, "emigrate", "/sys/fs/cgroup/abroad"), " ")
	if err := d.Run(ctx, "sh", "-c", "echo life; sleep 1000 & "+emigrant+" & wait"); err != nil {
		t.Fatal(err)
	}
	first := pid()
	if got := run(t, a, "cat", fmt.Sprintf("/proc/%d/cgroup", first)); !strings.Contains(got, "0::/daemons/test") {
		t.Errorf("the daemon is in the groups %q", got)
	}
	eventually(t, "arrival", func() bool { return strings.Contains(content(t, d.Log()), "arrived") })
	left := func() string { return run(t, a, "cat", "/sys/fs/cgroup/daemons/test/cgroup.procs") }
	abroad := func() int { return len(strings.Fields(run(t, a, "cat", "/sys/fs/cgroup/abroad/cgroup.procs"))) }

	if err := d.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	eventually(t, "another life", func() bool { p := pid(); return p != 0 && p != first })
	eventually(t, "second arrival", func() bool { return abroad() == 2 })
	if got := strings.Fields(left()); len(got) != 2 {
		t.Errorf("in the daemon's group are %v, want the second shell and its sleep only", got)
	}

	if err := d.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	if pid() != 0 || left() != "" {
		t.Errorf("after the stop: PID %d, in its group %q", pid(), left())
	}
	if abroad() != 2 {
		t.Error("who left the daemon's group did not survive its stop")
	}
	if err := d.Stop(ctx); err != nil {
		t.Errorf("stopping twice: %v", err)
	}
	if err := d.Kill(ctx); err == nil {
		t.Error("killed a daemon that does not run")
	}

	if err := d.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if pid() == 0 {
		t.Error("started, and no PID")
	}
	if err := d.Run(ctx, "sleep", "1000"); err != nil {
		t.Fatal(err)
	}
	if got := run(t, a, "cat", fmt.Sprintf("/proc/%d/comm", pid())); got != "sleep" {
		t.Errorf("replaced by sleep, it is %q", got)
	}
}
