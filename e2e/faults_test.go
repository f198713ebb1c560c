package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/e2e/lab"
	"github.com/pagurus-project/pagurus/e2e/testbed"
	"github.com/pagurus-project/pagurus/migrate"
)

// Who is killed.
const (
	source      = "source agent"
	destination = "destination agent"
	leader      = "raft leader"
)

// A fault is a migration that somebody is killed in. It goes from host-a to
// host-b, and a service address goes along.
type fault struct {
	t       *testing.T
	ctx     context.Context
	process *testbed.Process
	id      string
	held    *lab.Daemon     // an agent that stops itself, or nil
	hold    string          // the file that makes it
	along   []netip.Prefix  // the service addresses that go along
	clients testbed.Clients // of the process, by the first of them
	unix    string          // where it listens, too
}

// alongFault is the service address.
var alongFault = netip.MustParsePrefix("10.77.0.110/24")

// An instant at which to kill: a point at which an agent is held (package agent), and
// what shows that the migration is there.
type instant struct {
	point string
	held  string // the host whose agent is held
	flags []string
	state migrate.State // of the record; what the leader cannot know yet shows in the journals
	// The phases in the journals of the two sides.
	source, target string
	frozen         bool // the source's control group is
	// What becomes of it if the source's agent, the destination's or the leader
	// is killed. The process runs where that says.
	outcomes [3]migrate.State
}

var instants = []instant{
	{
		"inspecting", "host-a", nil, migrate.StatePreflight, "", "", false, [3]migrate.State{migrate.StateDone, migrate.StateDone, migrate.StateDone},
	},
	{
		"reserving", "host-b", nil, migrate.StatePreflight, "", "reserved", false, [3]migrate.State{migrate.StateDone, migrate.StateDone, migrate.StateDone},
	},
	{
		"copying", "host-a", []string{"--bandwidth", "200Mbit"}, migrate.StatePrecopy, "running", "reserved", false, [3]migrate.State{migrate.StateAborted, migrate.StateAborted, migrate.StateDone},
	},
	{
		"stopped", "host-a", nil, migrate.StatePrecopy, "running", "reserved", false, [3]migrate.State{migrate.StateAborted, migrate.StateAborted, migrate.StateDone},
	},
	{
		"built", "host-b", nil, migrate.StateFrozen, "running", "reserved", true, [3]migrate.State{migrate.StateAborted, migrate.StateAborted, migrate.StateDone},
	},
	{
		"promising", "host-a", nil, migrate.StatePrepared, "running", "prepared", true, [3]migrate.State{migrate.StateAborted, migrate.StateDone, migrate.StateDone},
	},
	{
		"promised", "host-a", nil, migrate.StatePrepared, "promised", "prepared", true, [3]migrate.State{migrate.StateDone, migrate.StateDone, migrate.StateDone},
	},
	{
		"committing", "host-b", nil, migrate.StateCommitted, "promised", "prepared", true, [3]migrate.State{migrate.StateDone, migrate.StateDone, migrate.StateDone},
	},
	{
		"disposing", "host-a", nil, migrate.StateCommitted, "promised", "over", true, [3]migrate.State{migrate.StateDone, migrate.StateDone, migrate.StateDone},
	},
}

// TestKills kills each of those who take part in a migration with SIGKILL, at
// each instant. Afterwards exactly one copy runs, and nothing is left over.
func TestKills(t *testing.T) {
	for _, instant := range instants {
		for i, victim := range []string{source, destination, leader} {
			t.Run(instant.point+" "+victim, func(t *testing.T) {
				f := newFault(t, instant.held, instant.point)
				f.begin(instant.flags...)
				mustServe(t, f.clients, func() {
					f.await("the migration to be held", f.isHeld)
					f.mustBe(instant)
					back := f.kill(victim)
					f.letGo()
					f.await("the "+victim+" to be back", back)
					f.judge([]migrate.State{instant.outcomes[i]})
				})
				if err := f.clients.End(); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// mustBe waits until the migration is where an instant is.
func (f *fault) mustBe(i instant) {
	f.t.Helper()
	where := func() (state migrate.State, source, target string, frozen bool) {
		var r migrate.Report
		f.ask(&r, "show", f.id)
		return r.State, f.phase("host-a", "source"), f.phase("host-b", "target"), f.frozen()
	}
	there := func() bool {
		state, source, target, frozen := where()
		return state == i.state && source == i.source && target == i.target && frozen == i.frozen
	}
	if err := testbed.Await(limit(f.t, 10*time.Second), i.point, func() (bool, error) { return there(), nil }); err != nil {
		state, source, target, frozen := where()
		f.t.Fatalf("%v: it is %s, the source %q, the destination %q, frozen: %v", err, state, source, target, frozen)
	}
}

// TestKillsAtRandom kills at instants that nobody chose.
func TestKillsAtRandom(t *testing.T) {
	const kills = 9
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for i := range kills {
		victim := []string{source, destination, leader}[i%3]
		after := time.Duration(random.Int64N(int64(400 * time.Millisecond)))
		t.Run(fmt.Sprintf("%s after %v", victim, after.Round(time.Millisecond)), func(t *testing.T) {
			f := newFault(t, "", "")
			f.begin()
			mustServe(t, f.clients, func() {
				<-time.After(after)
				f.await("the "+victim+" to be back", f.kill(victim))
				f.judge([]migrate.State{migrate.StateDone, migrate.StateAborted, migrate.StateRefused})
			})
			if err := f.clients.End(); err != nil {
				t.Error(err)
			}
		})
	}
}

// newFault starts a program, of which a migration will be held at a point.
func newFault(t *testing.T, held, point string) *fault {
	t.Helper()
	return newFaultAt(t, held, point, netip.AddrPortFrom(alongFault.Addr(), 7351).String())
}

// newFaultAt has it listen at more than the service address, and at more of those.
func newFaultAt(t *testing.T, held, point, listen string, more ...netip.Prefix) *fault {
	t.Helper()
	ctx := limit(t, 90*time.Second)
	for _, h := range bed.Lab.Hosts() {
		agentAnswers(ctx, t, h.Name()) // after the case before this one
	}
	f := &fault{t: t, ctx: ctx, along: append([]netip.Prefix{alongFault}, more...)}
	for _, p := range f.along {
		addAddress(ctx, t, p, "host-a")
	}
	at := netip.AddrPortFrom(alongFault.Addr(), 7351)
	f.unix = filepath.Join("/srv/local", filepath.Base(t.TempDir())+fmt.Sprint(time.Now().UnixNano()), "echo")
	for _, h := range []string{"host-a", "host-b"} {
		dir := filepath.Dir(filepath.Join(f.root(h), f.unix))
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
	}
	f.process = start(ctx, t, "host-a", "$BIN/workload", "memory", "-size", "64MiB", "-threads", "3", "-echo", listen, "-unix", f.unix, "-datagrams", at.String(), "-ask", "$ASK")
	f.clients = dialAll(ctx, t, at, 3)
	if held != "" {
		f.held, f.hold = host(t, held).Daemon("agent"), filepath.Join(f.root(held), "run/pagurus/hold")
		if err := os.WriteFile(f.hold, []byte(point), 0o600); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = os.Remove(f.hold) // if it was never reached
			f.letGo()
		})
	}
	return f
}

// begin begins the migration.
func (f *fault) begin(flags ...string) {
	f.t.Helper()
	var r migrate.Report
	f.ask(&r, append([]string{
		"move", fmt.Sprint(f.process.PID), "--from", "host-a", "--to", "host-b", "--detach",
	}, flags...)...)
	f.id = r.ID
}

// ask runs migratectl by way of host-c's agent, which is never held or killed.
func (f *fault) ask(document any, args ...string) {
	f.t.Helper()
	out, err := f.command(args...).Output()
	if err == nil {
		err = json.Unmarshal(out, document)
	}
	if err != nil {
		f.t.Fatalf("migratectl %v: %v", args, err)
	}
}

func (f *fault) command(args ...string) *exec.Cmd {
	sockets := bed.Lab.Sockets()
	c := exec.CommandContext(f.ctx, filepath.Join(bed.Bin, "migratectl"), append([]string{"--server", sockets[len(sockets)-1], "--json"}, args...)...)
	c.Env = os.Environ()
	return c
}

// isHeld reports whether the agent has stopped itself.
func (f *fault) isHeld() bool {
	if _, err := os.Stat(f.hold); err == nil {
		return false
	}
	pid, err := f.held.PID(f.ctx)
	if err != nil {
		f.t.Fatal(err)
	}
	stat, err := os.ReadFile(filepath.Join(f.root(f.heldHost()), "proc", fmt.Sprint(pid), "stat"))
	if err != nil {
		f.t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	return strings.HasPrefix(rest, "T")
}

func (f *fault) heldHost() string { return filepath.Base(filepath.Dir(f.held.Log())) }

// letGo lets the held agent go on, if it is still the one that was held.
func (f *fault) letGo() {
	f.t.Helper()
	if f.held == nil {
		return
	}
	if err := f.held.Signal(context.WithoutCancel(f.ctx), unix.SIGCONT); err != nil {
		f.t.Error(err)
	}
	f.held = nil
}

// judge waits for the end of the migration and looks at what has become of it.
func (f *fault) judge(outcomes []migrate.State) {
	f.t.Helper()
	r := settled(f.ctx, f.t, f.id)
	f.t.Logf("%s: %s", r.State, r.Reason)
	if !slices.Contains(outcomes, r.State) {
		f.t.Errorf("the migration is %s (%s), and should be one of %v%s", r.State, r.Reason, outcomes, bed.Logs("host-a", "host-b"))
	}
	if r.State == migrate.StateDone {
		f.process.Host = "host-b"
	}
	alone(f.t, f.process)
	content(f.ctx, f.t, f.process)
	// A host that was lost is told now and then.
	other := map[string]string{"host-a": "host-b", "host-b": "host-a"}[f.process.Host]
	for _, p := range f.along {
		f.await("the address to be where the process is", func() bool {
			return has(f.t, f.process.Host, p.Addr()) && !has(f.t, other, p.Addr())
		})
		mustBeAt(f.ctx, f.t, p, f.process.Host)
	}
	f.mustAnswer(other)
	if f.t.Failed() {
		f.t.Log(bed.Logs("host-a", "host-b"))
	}
}

// mustAnswer asks the process by its other sockets, of which the other host has none.
func (f *fault) mustAnswer(other string) {
	f.t.Helper()
	at := filepath.Join(f.root(f.process.Host), f.unix)
	byFile, err := net.Dial("unix", at)
	if err != nil {
		f.t.Error(err)
		return
	}
	defer byFile.Close()
	datagrams := openUDP(f.t, 0, netip.AddrPortFrom(alongFault.Addr(), 7351))
	for _, conn := range []net.Conn{byFile, datagrams} {
		buf := make([]byte, 100)
		_, err := conn.Write([]byte("still there\n"))
		if err == nil {
			err = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		}
		n := 0
		if err == nil {
			n, err = conn.Read(buf)
		}
		if err != nil || !strings.HasPrefix(string(buf[:n]), "still there") {
			f.t.Errorf("by %s it answers %q, %v", conn.RemoteAddr().Network(), buf[:n], err)
		}
	}
	f.await("the socket's file to be where the process is alone", func() bool {
		here, err := os.ReadDir(filepath.Dir(at))
		there, otherErr := os.ReadDir(filepath.Dir(filepath.Join(f.root(other), f.unix)))
		return errors.Join(err, otherErr) == nil && len(here) == 1 && len(there) == 0
	})
}

func (f *fault) await(what string, done func() bool) {
	f.t.Helper()
	if err := testbed.Await(f.ctx, what, func() (bool, error) { return done(), nil }); err != nil {
		f.t.Fatalf("%v%s", err, bed.Logs("host-a", "host-b"))
	}
}

// kill kills a daemon. Its result tells whether the one that is started in its
// place answers.
func (f *fault) kill(victim string) (back func() bool) {
	f.t.Helper()
	name, which := "host-a", "agent"
	switch victim {
	case destination:
		name = "host-b"
	case leader:
		name, which = bed.Lab.Status(f.ctx).Leader, "coordinator"
	}
	d := host(f.t, name).Daemon(which)
	before, err := d.PID(f.ctx)
	if err != nil {
		f.t.Fatal(err)
	}
	if err := d.Kill(f.ctx); err != nil {
		f.t.Fatal(err)
	}
	if f.held != nil && f.held.Log() == d.Log() {
		f.held = nil // there is nobody to let go of any more
	}
	return func() bool {
		if pid, err := d.PID(f.ctx); err != nil || pid == before {
			return false
		}
		if victim == leader {
			return bed.Lab.Status(f.ctx).Leader != ""
		}
		code, _, err := bed.Run(f.ctx, nil, "ps", "--host", name)
		return code == 0 && err == nil
	}
}

// frozen reports whether the process's control group is frozen at the source.
func (f *fault) frozen() bool {
	found := false
	root := f.root("host-a")
	_ = filepath.WalkDir(filepath.Join(root, "sys/fs/cgroup"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.Contains(d.Name(), f.id) {
			events, _ := os.ReadFile(filepath.Join(path, "cgroup.events"))
			found = found || strings.Contains(string(events), "frozen 1")
		}
		return nil // what goes away meanwhile is not frozen
	})
	return found
}

func (f *fault) phase(name, side string) string {
	content, err := os.ReadFile(filepath.Join(f.root(name), "run/pagurus/migrations", f.id+"-"+side+".json"))
	if err != nil {
		return ""
	}
	var entry struct {
		Phase string `json:"phase"`
	}
	if err := json.Unmarshal(content, &entry); err != nil {
		f.t.Fatalf("%s's journal: %v: %s", name, err, content)
	}
	return entry.Phase
}

func (f *fault) root(name string) string {
	f.t.Helper()
	root, err := host(f.t, name).Root()
	if err != nil {
		f.t.Fatal(err)
	}
	return root
}
