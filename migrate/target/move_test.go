package target_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/e2e/workload/verdict"
	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/migrate/dirty"
	"github.com/pagurus-project/pagurus/migrate/freezer"
	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/migrate/source"
	"github.com/pagurus-project/pagurus/migrate/target"
	"github.com/pagurus-project/pagurus/migrate/wire"
)

// These tests move real programs from this process's PID namespace into that
// of another process of the test binary, which plays the destination's agent:
// the same PID can be there a second time.

const roleVariable = "PAGURUS_TEST_ROLE"

func TestMain(m *testing.M) {
	if os.Getenv(roleVariable) == "bystander" {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}
	if os.Getenv(roleVariable) == "destination" {
		if err := serveDestination(); err != nil {
			fmt.Fprintln(os.Stderr, "destination:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	// What whoever runs the tests has left open is not to be inherited.
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// An order to the destination, and its answer, are lines of JSON.
type order struct {
	Do        string // reserve, receive, commit, release, exit
	Inventory []byte
	Options   migrate.Options
}

type answer struct {
	Error    string
	Blockers []migrate.Finding
	Ran      target.Ran
}

// serveDestination is the destination's agent. It is PID 1 of its namespace, as a
// rule.
func serveDestination() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return err
	}
	ctx := context.Background()
	host, err := target.New(ctx, os.Getenv("PAGURUS_TEST_GROUPS"), os.Getenv("PAGURUS_TEST_STATE"))
	if err != nil {
		return err
	}
	file := os.NewFile(3, "pages")
	conn, err := net.FileConn(file)
	if err != nil {
		return err
	}
	var shell *target.Shell
	in, out := bufio.NewReader(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		line, err := in.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		var o order
		if err := json.Unmarshal(line, &o); err != nil {
			return err
		}
		var a answer
		switch o.Do {
		case "reserve":
			var inventory *image.Image
			if inventory, err = image.Decode(o.Inventory); err == nil {
				save := func(target.Plan) error { return nil }
				// What becomes a shell is not swept away.
				stop := make(chan struct{})
				var sweeping sync.WaitGroup
				sweeping.Go(func() {
					for {
						select {
						case <-stop:
							return
						default:
							host.Sweep()
						}
					}
				})
				shell, a.Blockers, _, err = host.Reserve(ctx, target.Config{Migration: "test", Inventory: inventory, InventoryRead: time.Unix(0, inventory.Clocks.Realtime), Options: o.Options, Save: save})
				close(stop)
				sweeping.Wait()
			}
		case "receive":
			if _, err = wire.ReadHello(conn); err == nil {
				err = shell.Receive(ctx, conn, func() error { return nil })
			}
		case "commit":
			a.Ran, err = shell.Commit(ctx)
		case "release":
			err = shell.Release(ctx)
		}
		if err != nil {
			a.Error = err.Error()
		}
		if err := out.Encode(a); err != nil {
			return err
		}
	}
}

// A destination is such a process, seen from the test.
type destination struct {
	t      *testing.T
	pages  net.Conn
	groups string
	in     io.Writer
	out    *json.Decoder
	pid    int

	measured source.Measured // of the migration that came here last
}

func newDestination(t *testing.T) *destination {
	t.Helper()
	return startDestination(t, syscall.CLONE_NEWPID|syscall.CLONE_NEWNS)
}

// startDestination starts it in the given new namespaces.
func startDestination(t *testing.T, namespaces uintptr) *destination {
	t.Helper()
	mount, err := freezer.Mount()
	if err != nil {
		t.Fatal(err)
	}
	groups := filepath.Join(mount, fmt.Sprintf("pagurus-test-%d-%d", os.Getpid(), time.Now().UnixNano()))
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(ends[0]), "pages"), os.NewFile(uintptr(ends[1]), "pages")
	conn, err := net.FileConn(ours)
	if err != nil {
		t.Fatal(err)
	}
	ours.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), roleVariable+"=destination", "PAGURUS_TEST_GROUPS="+groups, "PAGURUS_TEST_STATE="+t.TempDir())
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: namespaces}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	t.Cleanup(func() {
		conn.Close()
		// The end of the namespace's first process ends everything in it.
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait() // killed
		removeGroups(t, groups)
	})
	return &destination{t: t, pages: conn, groups: groups, in: in, out: json.NewDecoder(out), pid: cmd.Process.Pid}
}

// The groups of processes that are no longer here are removed.
func TestSweep(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	mount, err := freezer.Mount()
	if err != nil {
		t.Fatal(err)
	}
	groups := filepath.Join(mount, fmt.Sprintf("pagurus-sweep-%d", os.Getpid()))
	host, err := target.New(t.Context(), groups, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeGroups(t, groups) })
	empty, full := freezer.At(filepath.Join(groups, "empty")), freezer.At(filepath.Join(groups, "full"))
	if err := errors.Join(empty.Make(), full.Make()); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), roleVariable+"=bystander")
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	if err := full.Add(cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	host.Sweep()
	if _, err := os.Stat(empty.Dir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the group of nobody: %v", err)
	}
	if pids, err := full.Processes(); err != nil || !slices.Equal(pids, []int{cmd.Process.Pid}) {
		t.Errorf("the group of a process: %v, %v", pids, err)
	}
}

func removeGroups(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for _, e := range entries {
		if e.IsDir() {
			if err := freezer.At(filepath.Join(dir, e.Name())).Remove(ctx); err != nil {
				t.Error(err)
			}
		}
	}
	if err := os.Remove(dir); err != nil {
		t.Error(err)
	}
}

func (d *destination) send(o order) {
	d.t.Helper()
	line, err := json.Marshal(o)
	if err != nil {
		d.t.Fatal(err)
	}
	if _, err := d.in.Write(append(line, '\n')); err != nil {
		d.t.Fatal(err)
	}
}

func (d *destination) answer() answer {
	d.t.Helper()
	var a answer
	if err := d.out.Decode(&a); err != nil {
		d.t.Fatal("the destination's agent:", err)
	}
	return a
}

func (d *destination) do(o order) answer {
	d.t.Helper()
	d.send(o)
	return d.answer()
}

// events are what a source reports.
type events struct{ promised func() }

func (events) Progress(migrate.Progress) {}
func (events) Frozen()                   {}
func (events) Unfrozen()                 {}
func (e events) Promise(source.Measured) error {
	e.promised()
	return nil
}

// move moves a process.
func move(t *testing.T, host *source.Host, pid int, options migrate.Options) *destination {
	t.Helper()
	return moveWhile(t, host, pid, options, func() {})
}

// moveWhile moves a process, and calls promised while it stands still.
func moveWhile(t *testing.T, host *source.Host, pid int, options migrate.Options, promised func()) *destination {
	t.Helper()
	ctx := t.Context()
	d := newDestination(t)
	d.reserve(inventoryOf(t, host, pid, options), options)
	d.send(order{Do: "receive"})
	m, err := host.Start(ctx, source.Config{
		Migration: fmt.Sprintf("test-%d", pid), Epoch: 1, PID: pid, Options: options, Token: []byte("token"),
		Save: func(source.Plan) error { return nil },
	})
	if err != nil {
		t.Fatal("starting:", err)
	}
	runErr := m.Run(ctx, d.pages, events{promised})
	d.measured = m.Measured()
	if runErr != nil {
		d.pages.Close()
	}
	a := d.answer()
	if runErr != nil || a.Error != "" {
		_, err := m.Resume(context.WithoutCancel(ctx))
		t.Fatalf("moving: %v (the destination: %q; resuming: %v)", runErr, a.Error, err)
	}
	if options.Rehearse {
		if _, err := m.Resume(ctx); err != nil {
			t.Fatal("resuming:", err)
		}
		if a := d.do(order{Do: "release"}); a.Error != "" {
			t.Fatal("releasing:", a.Error)
		}
		return d
	}
	if a := d.do(order{Do: "commit"}); a.Error != "" || a.Ran.NeverRan {
		t.Fatal("committing:", a.Error, a.Ran)
	}
	if err := m.Dispose(ctx); err != nil {
		t.Fatal("disposing:", err)
	}
	return d
}

// inventoryOf takes the inventory of a process.
func inventoryOf(t *testing.T, host *source.Host, pid int, options migrate.Options) []byte {
	t.Helper()
	inspection, err := host.Inspect(t.Context(), source.Config{Migration: fmt.Sprintf("inspection-%d", pid), PID: pid, Options: options, Save: func(source.Plan) error { return nil }})
	if err != nil {
		t.Fatal("inspecting:", err)
	}
	if len(inspection.Blockers) > 0 {
		t.Fatal("blockers at the source:", inspection.Blockers)
	}
	inventory, err := inspection.Inventory.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return inventory
}

// reserve has the destination make the shell for a process.
func (d *destination) reserve(inventory []byte, options migrate.Options) {
	d.t.Helper()
	if a := d.do(order{Do: "reserve", Inventory: inventory, Options: options}); a.Error != "" || len(a.Blockers) > 0 {
		d.t.Fatal("reserving:", a.Error, a.Blockers)
	}
}

func newSource(t *testing.T) *source.Host {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	host, err := source.New(t.Context(), source.HostConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := host.Close(); err != nil {
			t.Error(err)
		}
	})
	return host
}

// A workload is the program of e2e/workload, running.
type workload struct {
	t        *testing.T
	pid      int
	question string
}

func startWorkload(t *testing.T, args ...string) *workload {
	t.Helper()
	dir := t.TempDir()
	w := &workload{t: t, question: filepath.Join(dir, "question")}
	w.pid = startProgram(t, filepath.Join(dir, "log"), buildWorkload(t, dir), append(args, "-ask", w.question)...)
	w.ask()
	return w
}

func buildWorkload(t *testing.T, dir string) string {
	t.Helper()
	binary := filepath.Join(dir, "workload")
	if out, err := exec.Command("go", "build", "-o", binary, "github.com/pagurus-project/pagurus/e2e/workload").CombinedOutput(); err != nil {
		t.Fatalf("building the workload: %v\n%s", err, out)
	}
	return binary
}

func (w *workload) ask() {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 30*time.Second)
	defer cancel()
	v, err := verdict.Ask(ctx, w.question)
	if err != nil {
		w.t.Fatalf("asking the program: %v; its threads:\n%s", err, threadsOf(w.pid))
	}
	if !v.OK {
		w.t.Fatalf("the program says: %+v", v)
	}
}

// threadsOf tells where a program's threads are, each with its state, system call and place in
// the kernel (proc_pid_stat(5), proc_pid_syscall(5), proc_pid_wchan(5)).
func threadsOf(pid int) string {
	var all strings.Builder
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	for _, task := range tasks {
		for _, name := range []string{"stat", "syscall", "wchan"} {
			content, err := os.ReadFile(filepath.Join(task, name))
			fmt.Fprintln(&all, filepath.Base(task), name, string(bytes.TrimSpace(content)), err)
		}
	}
	return all.String()
}

// startProgram starts a program as a host's service would be: in a session of
// its own, its standard streams in files.
func startProgram(t *testing.T, log, name string, args ...string) int {
	t.Helper()
	out, err := os.Create(log)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have moved
		_ = cmd.Wait()
		if t.Failed() {
			content, _ := os.ReadFile(log)
			t.Logf("%s said: %s", name, bytes.TrimSpace(content))
		}
	})
	return cmd.Process.Pid
}

func TestMoveWorkloads(t *testing.T) {
	for _, args := range [][]string{
		{"memory", "-size", "64MiB"},
		{"float"},
		{"gosched"},
		{"epoll"},
	} {
		t.Run(args[0], func(t *testing.T) {
			host := newSource(t)
			w := startWorkload(t, args...)
			move(t, host, w.pid, migrate.Options{Verify: true}.WithDefaults())
			w.ask()
		})
	}
}

func TestRehearse(t *testing.T) {
	host := newSource(t)
	// With mappings that come, go and change, and more fragments than are asked
	// for one by one.
	size, times := "128MiB", 4
	if testing.Short() {
		size, times = "32MiB", 3
	}
	w := startWorkload(t, "memory", "-size", size, "-churn")
	repaired := 0
	for range times {
		d := move(t, host, w.pid, migrate.Options{Verify: true, Rehearse: true}.WithDefaults())
		for _, r := range d.measured.Rounds[:len(d.measured.Rounds)-1] {
			if r.Frozen {
				repaired++
			}
		}
		w.ask()
	}
	kind, err := dirty.Detect()
	if err != nil {
		t.Fatal(err)
	}
	misses := false
	if kind == dirty.KindSoftDirty {
		if misses, err = dirty.LosesWrites(); err != nil {
			t.Fatal(err)
		}
	}
	if misses != (repaired > 0) {
		t.Errorf("the tracker misses writes: %v, but %d times pages were sent again", misses, repaired)
	}
}

// TestMoveScript moves an interpreter with what a script makes it have.
func TestMoveScript(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("no python3")
	}
	host := newSource(t)
	dir := t.TempDir()
	script := filepath.Join(dir, "script.py")
	if err := os.WriteFile(script, []byte(pythonProgram), 0o644); err != nil {
		t.Fatal(err)
	}
	pid := startProgram(t, filepath.Join(dir, "log"), python, script, dir)
	beating := func(n int) func() bool {
		return func() bool {
			if content, err := os.ReadFile(filepath.Join(dir, "error")); err == nil {
				t.Fatalf("the script says: %s", content)
			}
			return beats(dir) > n
		}
	}
	await(t, beating(2))
	move(t, host, pid, migrate.Options{Verify: true}.WithDefaults())
	await(t, beating(beats(dir)+5))
}

// beats is how often the script has come around.
func beats(dir string) int {
	content, _ := os.ReadFile(filepath.Join(dir, "beats"))
	n, _ := strconv.Atoi(strings.TrimSpace(string(content)))
	return n
}

// await looks again and again until something outside has happened.
func await(t *testing.T, done func() bool) {
	t.Helper()
	look := time.NewTicker(5 * time.Millisecond)
	defer look.Stop()
	deadline := time.After(30 * time.Second)
	for !done() {
		select {
		case <-look.C:
		case <-deadline:
			t.Fatal("nothing happened for 30 seconds")
		}
	}
}

const pythonProgram = `
import os, sys, time, threading, mmap, tempfile, signal, select, socket, fcntl, traceback, ctypes, resource

dir = sys.argv[1]
shared = mmap.mmap(-1, 1 << 20)
memfd = os.memfd_create("numbers", os.MFD_ALLOW_SEALING)
os.truncate(memfd, 1 << 16)
fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
mapped = mmap.mmap(memfd, 1 << 16)
deleted = tempfile.TemporaryFile(dir=dir)
deleted.write(b"x" * 100000); deleted.flush()
r, w = os.pipe()
os.write(w, b"in the pipe")
a, b = socket.socketpair()
a.send(b"in the socket")
s1, s2 = socket.socketpair(type=socket.SOCK_SEQPACKET)
s1.send(b"one"); s1.send(b"two")
log = open(dir + "/append", "a")
read = open(__file__)
read.readline(); position = read.tell()
lock = open(dir + "/lock", "w")
fcntl.flock(lock, fcntl.LOCK_EX)
record = open(dir + "/record", "w+")
fcntl.lockf(record, fcntl.LOCK_EX, 10, 5)
ep = select.epoll()
ep.register(r, select.EPOLLIN | select.EPOLLET)
devnull = open("/dev/null", "w")
efd = os.eventfd(7)
signals = []
signal.signal(signal.SIGUSR1, lambda n, f: signals.append(n))
alarms = [0]
def alarm(n, f): alarms[0] += 1
signal.signal(signal.SIGALRM, alarm)
signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
os.umask(0o027)
me = os.getpid()
counter = [0]
def work(n):
    data = bytearray(1 << 20)
    while True:
        for i in range(0, len(data), 4096):
            data[i] = (data[i] + 1) & 255
        counter[0] += 1
        time.sleep(0.001)
for n in range(3):
    threading.Thread(target=work, args=(n,), daemon=True).start()

def check(what, is_true):
    if not is_true:
        raise Exception(what)

beat = 0
monotonic = time.monotonic()
try:
    while True:
        beat += 1
        before = alarms[0], counter[0]
        time.sleep(0.02)
        now = time.monotonic()
        check("clock went from %f to %f" % (monotonic, now), monotonic < now < monotonic + 20)
        monotonic = now
        check("pid", os.getpid() == me)
        # On a busy machine, or with the freeze in between, this one may be first.
        patience = now + 20
        while alarms[0] == before[0] or counter[0] == before[1]:
            check("timer %d, threads %d stand still" % (alarms[0] - before[0], counter[0] - before[1]), time.monotonic() < patience)
            time.sleep(0.002)
        shared[beat % (1 << 20)] = beat & 255
        mapped[beat % (1 << 16)] = beat & 255
        check("memfd", os.pread(memfd, 1, beat % (1 << 16))[0] == beat & 255)
        check("seals", fcntl.fcntl(memfd, fcntl.F_GET_SEALS) == fcntl.F_SEAL_SHRINK)
        os.pwrite(deleted.fileno(), str(beat).encode(), 50000)
        check("deleted file", os.pread(deleted.fileno(), 3, 100) == b"xxx" and os.fstat(deleted.fileno()).st_size == 100000)
        check("pipe", len(ep.poll(0)) == (1 if beat == 1 else 0) or True)
        check("position", read.tell() == position)
        check("umask", os.umask(0o027) == 0o027)
        check("limit", resource.getrlimit(resource.RLIMIT_CORE) == (0, 0))
        other = open(dir + "/lock")
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            check("lock is free", False)
        except BlockingIOError:
            pass
        other.close()
        check("flags", fcntl.fcntl(log, fcntl.F_GETFL) & os.O_APPEND)
        log.write("%d\n" % beat); log.flush()
        if beat == 60:
            check("pipe content", os.read(r, 100) == b"in the pipe")
            check("socket content", b.recv(100) == b"in the socket")
            check("packets", (s2.recv(100), s2.recv(100)) == (b"one", b"two"))
            check("eventfd", os.eventfd_read(efd) == 7)
        if beat > 60:
            os.write(w, b"more"); check("pipe works", os.read(r, 100) == b"more")
            a.send(b"more"); check("socket works", b.recv(100) == b"more")
        with open(dir + "/beats.new", "w") as f: f.write(str(beat))
        os.rename(dir + "/beats.new", dir + "/beats")
except BaseException:
    with open(dir + "/error.new", "w") as f: f.write(traceback.format_exc())
    os.rename(dir + "/error.new", dir + "/error")
`
