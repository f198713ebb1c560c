package parasite_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/parasite"
	"github.com/pagurus-project/pagurus/parasite/parasitetest"
)

func TestMain(m *testing.M) {
	parasitetest.Main()
	if pid := os.Getenv(tormentorEnvironment); pid != "" {
		torment(pid)
	}
	goleak.VerifyTestMain(m)
}

// seize starts a victim and a tracer for it.
func seize(t *testing.T, kind string) (*parasitetest.Victim, *parasite.Tracer, *parasite.Process) {
	t.Helper()
	parasitetest.NeedRoot(t)
	v := parasitetest.Start(t, kind)
	tracer := newTracer(t)
	p, err := tracer.Seize(v.PID)
	if err != nil {
		t.Fatal(err)
	}
	return v, tracer, p
}

func newTracer(t *testing.T) *parasite.Tracer {
	t.Helper()
	parasitetest.NeedRoot(t)
	tracer := parasite.NewTracer()
	t.Cleanup(func() {
		if err := tracer.Close(); err != nil {
			t.Errorf("closing the tracer: %v", err)
		}
	})
	return tracer
}

func stopAll(t *testing.T, p *parasite.Process) {
	t.Helper()
	if err := p.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func detach(t *testing.T, p *parasite.Process) {
	t.Helper()
	if err := p.Detach(); err != nil {
		t.Fatal(err)
	}
}

func finish(t *testing.T, v *parasitetest.Victim) {
	t.Helper()
	if err := v.Finish(); err != nil {
		t.Error(err)
	}
}

// leader is the thread that shares the process's id.
func leader(p *parasite.Process) *parasite.Thread { return p.Thread(p.PID()) }

func TestStopIsNotNoticed(t *testing.T) {
	v, tracer, _ := seize(t, parasitetest.Busy)
	for range 200 {
		p, err := tracer.Seize(v.PID)
		if err != nil {
			t.Fatal(err)
		}
		stopAll(t, p)
		if n := len(p.ThreadIDs()); n < 11 {
			t.Fatalf("%d threads stopped", n)
		}
		detach(t, p)
	}
	finish(t, v)
}

// snapshot is everything of a stopped process that remote calls must not change.
type snapshot struct {
	Maps    string
	VDSO    []byte
	FDs     []string
	Threads map[int]threadSnapshot
}

type threadSnapshot struct {
	Registers   parasite.Registers
	XState      []byte
	Mask        uint64
	Interrupted parasite.Interrupted
}

func take(t *testing.T, p *parasite.Process) snapshot {
	t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", p.PID()))
	if err != nil {
		t.Fatal(err)
	}
	s := snapshot{Maps: string(maps), Threads: make(map[int]threadSnapshot)}
	for line := range strings.Lines(s.Maps) {
		if strings.HasSuffix(line, "[vdso]\n") {
			var start, end uintptr
			if _, err := fmt.Sscanf(line, "%x-%x", &start, &end); err != nil {
				t.Fatal(err)
			}
			s.VDSO = make([]byte, end-start)
			if err := p.ReadMemory(start, s.VDSO); err != nil {
				t.Fatal(err)
			}
		}
	}
	if s.FDs, err = filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", p.PID())); err != nil {
		t.Fatal(err)
	}
	for _, tid := range p.ThreadIDs() {
		thread := p.Thread(tid)
		state, err := thread.XState()
		if err != nil {
			t.Fatal(err)
		}
		mask, err := thread.SignalMask()
		if err != nil {
			t.Fatal(err)
		}
		s.Threads[tid] = threadSnapshot{thread.Registers(), state, mask, thread.Interrupted()}
	}
	return s
}

func TestRemoteCalls(t *testing.T) {
	for _, kind := range []string{parasitetest.Busy, parasitetest.Confined} {
		t.Run(kind, func(t *testing.T) {
			v, _, p := seize(t, kind)
			stopAll(t, p)
			before := take(t, p)
			for _, tid := range p.ThreadIDs() {
				callSingly(t, p, tid)
				callBatch(t, p, tid)
			}
			sameAsBefore(t, p, before)
			detach(t, p)
			finish(t, v)
		})
	}
}

func callSingly(t *testing.T, p *parasite.Process, tid int) {
	t.Helper()
	thread := p.Thread(tid)
	if got, err := thread.Syscall(t.Context(), unix.SYS_GETTID); err != nil || int(got) != tid {
		t.Errorf("gettid in thread %d: %d, %v", tid, got, err)
	}
	// The filter of a confined victim kills for this one.
	if got, err := thread.Syscall(t.Context(), unix.SYS_GETPPID); err != nil || int(got) != os.Getpid() {
		t.Errorf("getppid in thread %d: %d, %v", tid, got, err)
	}
	if _, err := thread.Syscall(t.Context(), unix.SYS_CLOSE, ^uintptr(0)); !errors.Is(err, unix.EBADF) {
		t.Errorf("close(-1) in thread %d: %v", tid, err)
	}
}

func callBatch(t *testing.T, p *parasite.Process, tid int) {
	t.Helper()
	b := p.Thread(tid).Batch(t.Context())
	limit := b.Space(16)
	prlimit := b.Call(unix.SYS_PRLIMIT64, 0, unix.RLIMIT_NOFILE, 0, limit)
	name := b.String("/proc/self")
	target := b.Space(32)
	readlink := b.Call(unix.SYS_READLINKAT, ^uintptr(99), name, target, 32)
	wrong := b.Call(unix.SYS_CLOSE, ^uintptr(0))
	self := b.Call(unix.SYS_GETPID)
	if err := b.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Result(prlimit); err != nil {
		t.Errorf("prlimit: %v", err)
	}
	var got, want unix.Rlimit
	parasite.Into(b, limit, &got)
	if err := unix.Prlimit(p.PID(), unix.RLIMIT_NOFILE, nil, &want); err != nil {
		t.Fatal(err)
	}
	if got != want {
		t.Errorf("limit %v instead of %v", got, want)
	}
	if n, err := b.Result(readlink); err != nil || string(b.Read(target, int(n))) != fmt.Sprint(p.PID()) {
		t.Errorf("/proc/self: %q, %v", b.Read(target, 32), err)
	}
	if _, err := b.Result(wrong); !errors.Is(err, unix.EBADF) {
		t.Errorf("close(-1): %v", err)
	}
	if pid, _ := b.Result(self); int(pid) != p.PID() {
		t.Errorf("getpid: %d", pid)
	}
	var callErr *parasite.CallError
	if err := b.Err(); !errors.As(err, &callErr) || callErr.Index != wrong {
		t.Errorf("first error of the batch: %v", err)
	}
}

// Of the stops that remote calls are made of, no signal tells: handling those
// would take longer than the calls.
func TestNoStopSignals(t *testing.T) {
	v, _, p := seize(t, parasitetest.Idle)
	told := make(chan os.Signal, 1000)
	signal.Notify(told, unix.SIGCHLD)
	defer signal.Stop(told)
	stopAll(t, p)
	for range 100 {
		if _, err := leader(p).Syscall(t.Context(), unix.SYS_GETPID); err != nil {
			t.Fatal(err)
		}
	}
	detach(t, p)
	finish(t, v)
	<-told // its end
	if n := len(told); n > 0 {
		t.Errorf("%d signals besides the one at its end", n)
	}
}

func TestBatchTooLarge(t *testing.T) {
	_, _, p := seize(t, parasitetest.Idle)
	stopAll(t, p)
	b := leader(p).Batch(t.Context())
	b.Space(b.Room() + 1)
	b.Call(unix.SYS_GETPID)
	if err := b.Run(t.Context()); !errors.Is(err, parasite.ErrBatchFull) {
		t.Errorf("running a batch that is too large: %v", err)
	}
	detach(t, p)
}

func TestOneThreadOnly(t *testing.T) {
	v, _, p := seize(t, parasitetest.Busy)
	if err := p.StopThread(t.Context(), p.PID()); err != nil {
		t.Fatal(err)
	}
	if ids := p.ThreadIDs(); len(ids) != 1 || ids[0] != p.PID() {
		t.Errorf("stopped threads: %v", ids)
	}
	if got, err := leader(p).Syscall(t.Context(), unix.SYS_GETTID); err != nil || int(got) != p.PID() {
		t.Errorf("gettid: %d, %v", got, err)
	}
	detach(t, p)
	finish(t, v)
}

// A remote call that does not return is given up and leaves no trace.
func TestBlockingCallIsGivenUp(t *testing.T) {
	for name, pause := range map[string]func(context.Context, *parasite.Process) error{
		"single": func(ctx context.Context, p *parasite.Process) error {
			_, err := leader(p).Syscall(ctx, unix.SYS_PAUSE)
			return err
		},
		"batch": func(ctx context.Context, p *parasite.Process) error {
			b := leader(p).Batch(ctx)
			b.Call(unix.SYS_GETPID)
			b.Call(unix.SYS_PAUSE)
			b.Call(unix.SYS_GETPID)
			return b.Run(ctx)
		},
	} {
		t.Run(name, func(t *testing.T) {
			v, _, p := seize(t, parasitetest.Busy)
			stopAll(t, p)
			before := take(t, p)
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			if err := pause(ctx, p); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("pause(): %v", err)
			}
			sameAsBefore(t, p, before)
			detach(t, p)
			finish(t, v)
		})
	}
}

// sameAsBefore compares a process, once our memory is out of it, with what it was.
func sameAsBefore(t *testing.T, p *parasite.Process, before snapshot) {
	t.Helper()
	if err := p.ReleaseScratch(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, take(t, p)); diff != "" {
		t.Errorf("remote calls left a trace (-before +after):\n%s", diff)
	}
}

// A batch that takes the ground from under its own feet faults; the thread is
// back where it was all the same.
func TestFaultInBatch(t *testing.T) {
	v, _, p := seize(t, parasitetest.Busy)
	stopAll(t, p)
	before := take(t, p)
	b := leader(p).Batch(t.Context())
	b.Call(unix.SYS_MUNMAP, p.Scratch().Code, uintptr(os.Getpagesize()))
	if err := b.Run(t.Context()); err == nil || !strings.Contains(err.Error(), unix.SIGSEGV.String()) {
		t.Errorf("a batch without its code: %v", err)
	}
	sameAsBefore(t, p, before)
	detach(t, p)
	finish(t, v)
}

// A target that has other ids for our threads cannot notice our end.
func TestOtherPIDNamespace(t *testing.T) {
	parasitetest.NeedRoot(t)
	v := parasitetest.StartIn(t, parasitetest.Idle, unix.CLONE_NEWPID)
	p, err := newTracer(t).Seize(v.PID)
	if err != nil {
		t.Fatal(err)
	}
	stopAll(t, p)
	before := take(t, p)
	for range 20 {
		b := leader(p).Batch(t.Context())
		second, first := b.Call(unix.SYS_GETPPID), b.Call(unix.SYS_GETPID)
		if err := b.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		pid, err1 := b.Result(first)
		parent, err2 := b.Result(second)
		if err := errors.Join(err1, err2); err != nil || pid != 1 || parent != 0 {
			t.Fatalf("process %d, child of %d, instead of 1, child of 0: %v", pid, parent, err)
		}
	}
	sameAsBefore(t, p, before)
	detach(t, p)
	finish(t, v)
}

// A process that is stopped by a signal stays stopped, and a stop signal that
// comes while it is driven takes effect afterwards.
func TestJobControl(t *testing.T) {
	for _, when := range []string{"before", "during"} {
		t.Run(when, func(t *testing.T) {
			v, tracer, p := seize(t, parasitetest.Busy)
			if when == "before" {
				send(t, v.PID, unix.SIGSTOP)
				awaitState(t, v.PID, "T")
			}
			stopAll(t, p)
			if got := leader(p).JobStopped(); got != (when == "before") {
				t.Errorf("stopped by a signal: %v", got)
			}
			if when == "during" {
				send(t, v.PID, unix.SIGSTOP)
			}
			callBatch(t, p, p.PID())
			detach(t, p)
			awaitState(t, v.PID, "T")

			again, err := tracer.Seize(v.PID)
			if err != nil {
				t.Fatal(err)
			}
			stopAll(t, again)
			if !leader(again).JobStopped() {
				t.Error("not stopped by a signal any more")
			}
			detach(t, again)
			send(t, v.PID, unix.SIGCONT)
			finish(t, v)
		})
	}
}

func send(t *testing.T, pid int, sig unix.Signal) {
	t.Helper()
	if err := unix.Kill(pid, sig); err != nil {
		t.Fatal(err)
	}
}

// awaitState waits until the process is in a state of /proc/PID/stat.
func awaitState(t *testing.T, pid int, want string) {
	t.Helper()
	var state string
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			t.Fatal(err)
		}
		_, rest, _ := bytes.Cut(stat, []byte(") "))
		if state = string(rest[:1]); state == want {
			return
		}
	}
	t.Fatalf("process %d is in state %s instead of %s", pid, state, want)
}

func TestPendingSignals(t *testing.T) {
	v, _, p := seize(t, parasitetest.Idle)
	stopAll(t, p)
	send(t, v.PID, unix.SIGUSR1)
	if err := unix.Tgkill(v.PID, v.PID, unix.SIGUSR2); err != nil {
		t.Fatal(err)
	}
	for shared, want := range map[bool]unix.Signal{true: unix.SIGUSR1, false: unix.SIGUSR2} {
		got, err := leader(p).PendingSignals(shared)
		if err != nil {
			t.Fatal(err)
		}
		if len(got) != 1 || got[0].Signal() != int(want) {
			t.Errorf("pending signals (shared %v): %v", shared, got)
		}
		pid := int32(binary.LittleEndian.Uint32(got[0][16:])) // si_pid
		if int(pid) != os.Getpid() {
			t.Errorf("sent by %d", pid)
		}
	}
	detach(t, p)
}

func TestGone(t *testing.T) {
	v, tracer, p := seize(t, parasitetest.Idle)
	stopAll(t, p)
	send(t, v.PID, unix.SIGKILL)
	if _, err := leader(p).Syscall(t.Context(), unix.SYS_GETPID); !errors.Is(err, parasite.ErrGone) {
		t.Errorf("call in a dead process: %v", err)
	}
	detach(t, p)
	v.Kill()
	if _, err := tracer.Seize(v.PID); !errors.Is(err, parasite.ErrGone) {
		t.Errorf("seizing a dead process: %v", err)
	}
}

// The other end of never harming the target: the tracer is killed at any
// moment, hundreds of times, and the target does not notice.
func TestKilledTracer(t *testing.T) {
	for _, kind := range []string{parasitetest.Steady, parasitetest.Guarded} {
		t.Run(kind, func(t *testing.T) { killTracers(t, kind) })
	}
}

func killTracers(t *testing.T, kind string) {
	t.Helper()
	parasitetest.NeedRoot(t)
	v := parasitetest.Start(t, kind)
	const rounds = 150
	calls := 0
	for range rounds {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d", tormentorEnvironment, v.PID))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		one := make([]byte, 1)
		if _, err := out.Read(one); err != nil {
			t.Fatalf("tormentor: %v", err)
		}
		wait := time.NewTimer(time.Duration(rand.IntN(20_000)) * time.Microsecond)
		<-wait.C
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		n, _ := out.Read(make([]byte, 1<<16))
		calls += n
		_ = cmd.Wait()
	}
	t.Logf("%d rounds were completed by tracers that were then killed", calls)
	finish(t, v)
}

const tormentorEnvironment = "PAGURUS_TORMENT"

// torment drives a process without pause until it is killed.
func torment(pid string) {
	var target int
	if _, err := fmt.Sscan(pid, &target); err != nil {
		panic(err)
	}
	ctx := context.Background()
	check := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, "tormentor:", err)
			os.Exit(1)
		}
	}
	tracer := parasite.NewTracer()
	os.Stdout.Write([]byte("."))
	for {
		p, err := tracer.Seize(target)
		check(err)
		check(p.Stop(ctx))
		for _, tid := range p.ThreadIDs() {
			b := p.Thread(tid).Batch(ctx)
			for range 3 {
				b.Call(unix.SYS_GETPID)
			}
			check(b.Run(ctx))
		}
		check(p.Detach())
		os.Stdout.Write([]byte("."))
	}
}
