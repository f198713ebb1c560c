package source

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/migrate/procfs"
	"github.com/pagurus-project/pagurus/parasite"
)

var errStop = errors.New("stop here")

// Whatever happens to a migration, after Resume the process runs as before and
// has noticed nothing.
func TestResume(t *testing.T) {
	for name, test := range map[string]struct {
		rehearse bool
		frozen   bool // it was, when Run ended
		run      func(ctx context.Context, stop context.CancelCauseFunc, r *replica, e *recorder) error
	}{
		"rehearsed": {rehearse: true, frozen: true, run: func(context.Context, context.CancelCauseFunc, *replica, *recorder) error { return nil }},
		"promised":  {frozen: true, run: func(context.Context, context.CancelCauseFunc, *replica, *recorder) error { return nil }},
		"promise refused": {frozen: true, run: func(_ context.Context, _ context.CancelCauseFunc, _ *replica, e *recorder) error {
			e.refuse = errStop
			return errStop
		}},
		"refused in round 0": {run: func(_ context.Context, _ context.CancelCauseFunc, r *replica, _ *recorder) error {
			r.refuseAt = 0
			return &RefusedError{"no more room"}
		}},
		"refused in round 1": {run: func(_ context.Context, _ context.CancelCauseFunc, r *replica, _ *recorder) error {
			r.refuseAt = 1
			return &RefusedError{"no more room"}
		}},
		"canceled in round 1": {run: func(_ context.Context, stop context.CancelCauseFunc, r *replica, _ *recorder) error {
			r.onRound = func(n uint32) {
				if n == 1 {
					stop(errStop)
				}
			}
			return errStop
		}},
		"canceled when frozen": {frozen: true, run: func(_ context.Context, stop context.CancelCauseFunc, _ *replica, e *recorder) error {
			e.onFrozen = func() { stop(errStop) }
			return errStop
		}},
		"silent destination": {frozen: true, run: func(_ context.Context, stop context.CancelCauseFunc, r *replica, e *recorder) error {
			r.silent = true
			e.onFrozen = func() { time.AfterFunc(100*time.Millisecond, func() { stop(errStop) }) }
			return errStop
		}},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			v := startVictim(t, "churn")
			was := look(t, h, v.pid)
			m := start(t, h, v.pid, migrate.Options{Rehearse: test.rehearse, MaxRounds: 5})
			r, events := newReplica(), &recorder{}
			ctx, stop := context.WithCancelCause(t.Context())
			defer stop(nil)
			want := test.run(ctx, stop, r, events)
			err := m.Run(ctx, r.connect(t), events)
			var refused *RefusedError
			switch {
			case want == nil && err == nil:
			case errors.As(want, &refused):
				var got *RefusedError
				if !errors.As(err, &got) || *got != *refused {
					t.Fatalf("%v instead of %v", err, want)
				}
			case want == nil || !errors.Is(err, want):
				t.Fatalf("%v instead of %v; the destination says %v", err, want, r.wait())
			}
			promises := len(events.promised)
			if wanted := !test.rehearse && (want == nil || events.refuse != nil); wanted != (promises == 1) {
				t.Errorf("%d promises", promises)
			}
			resumed, err := m.Resume(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if resumed.KilledAtSource || resumed.Downtime > 0 != test.frozen || (events.frozen > 0) != test.frozen {
				t.Errorf("%+v, %d times frozen", resumed, events.frozen)
			}
			if again, err := m.Resume(t.Context()); err != nil || again.Downtime != resumed.Downtime {
				t.Errorf("resumed again: %+v, %v", again, err)
			}
			was.untouched(t, h, v.pid)
			v.finish()
		})
	}
}

// A migration that never ran, and one whose destination does not welcome it.
func TestResumeEarly(t *testing.T) {
	h := newHost(t)
	v := startVictim(t, "idle")
	was := look(t, h, v.pid)
	m := start(t, h, v.pid, migrate.Options{})
	if _, err := m.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := m.Run(t.Context(), nil, &recorder{}); err == nil {
		t.Error("runs after it was resumed")
	}
	m = start(t, h, v.pid, migrate.Options{})
	near, far := net.Pipe()
	far.Close()
	if err := m.Run(t.Context(), near, &recorder{}); err == nil {
		t.Error("runs without a destination")
	}
	if err := m.Dispose(t.Context()); err == nil {
		t.Error("disposes of what was not promised")
	}
	if _, err := m.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	was.untouched(t, h, v.pid)
	v.finish()
}

// A program that stands many rehearsals without a system call interrupted.
func TestManyRehearsals(t *testing.T) {
	h := newHost(t)
	v := startVictim(t, "idle")
	was := look(t, h, v.pid)
	for range 30 {
		m := start(t, h, v.pid, migrate.Options{Rehearse: true})
		if err := m.Run(t.Context(), newReplica().connect(t), &recorder{}); err != nil {
			t.Fatal(err)
		}
		if _, err := m.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	was.untouched(t, h, v.pid)
	v.finish()
}

// A process that exits, becomes another program or has children in the middle
// ends the migration.
func TestProcessChanges(t *testing.T) {
	for _, kind := range []string{"exit", "exec", "fork"} {
		t.Run(kind, func(t *testing.T) {
			h := newHost(t)
			v := startVictim(t, kind)
			m := start(t, h, v.pid, migrate.Options{})
			r, events := newReplica(), &recorder{}
			r.onRound = func(n uint32) {
				if n == 0 {
					v.order("go")
					v.awaitChange(kind)
				}
			}
			if err := m.Run(t.Context(), r.connect(t), events); !errors.Is(err, ErrProcess) {
				t.Errorf("run ends with %v", err)
			}
			if resumed, err := m.Resume(t.Context()); err != nil || resumed.KilledAtSource || resumed.Ended != (kind == "exit") {
				t.Errorf("resumed: %+v, %v", resumed, err)
			}
			if _, err := os.Stat(m.group.Dir()); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("group is left over: %v", err)
			}
			v.killChildren()
		})
	}
}

// The source's part of the downtime is all of the time until the state has arrived,
// whatever the network has kept in its buffers, and nothing of what comes after.
func TestDowntimeUntilArrival(t *testing.T) {
	h := newHost(t)
	v := startVictim(t, "idle")
	m := start(t, h, v.pid, migrate.Options{})
	r := newReplica()
	r.way, r.builds = 200*time.Millisecond, 300*time.Millisecond
	began := time.Now()
	if err := m.Run(t.Context(), r.connect(t), &recorder{}); err != nil {
		t.Fatal(err)
	}
	got := m.Measured()
	if most := time.Since(began) - r.builds; got.Downtime < r.way || got.Downtime > most {
		t.Errorf("%v instead of %v to %v", got.Downtime, r.way, most)
	}
	sum := 0.0
	for _, phase := range []string{migrate.PhaseStop, migrate.PhaseDump, migrate.PhaseTransfer} {
		sum += got.PhasesMS[phase]
	}
	if diff := sum - milliseconds(got.Downtime); diff < -0.01 || diff > 0.01 {
		t.Errorf("phases of %v ms are %v", milliseconds(got.Downtime), got.PhasesMS)
	}
	if _, err := m.Resume(t.Context()); err != nil {
		t.Error(err)
	}
	v.finish()
}

// A strict migration is given up in the freeze, too, when the destination is not
// ready in time.
func TestStrictInTheFreeze(t *testing.T) {
	h := newHost(t)
	v := startVictim(t, "idle")
	was := look(t, h, v.pid)
	m := start(t, h, v.pid, migrate.Options{MaxDowntime: 400 * time.Millisecond, Strict: true})
	r, events := newReplica(), &recorder{}
	r.silent = true
	if err := m.Run(t.Context(), r.connect(t), events); !errors.Is(err, ErrDowntime) {
		t.Errorf("run ends with %v", err)
	}
	if events.frozen != 1 || len(events.promised) > 0 {
		t.Errorf("%d times frozen, %d promises", events.frozen, len(events.promised))
	}
	if resumed, err := m.Resume(t.Context()); err != nil || resumed.Downtime <= 0 || resumed.KilledAtSource {
		t.Errorf("%+v, %v", resumed, err)
	}
	was.untouched(t, h, v.pid)
	v.finish()
}

// A child that is there when the migration begins, and was not at preflight, ends
// it before anything is copied.
func TestForkedSincePreflight(t *testing.T) {
	h := newHost(t)
	v := startVictim(t, "fork")
	m := start(t, h, v.pid, migrate.Options{})
	v.order("go")
	v.awaitChange("fork")
	err := m.Run(t.Context(), newReplica().connect(t), &recorder{})
	blocked, ok := errors.AsType[*BlockedError](err)
	if !ok || blocked.Blockers[0].Code != migrate.CodeChildren {
		t.Errorf("run ends with %v", err)
	}
	if len(m.Measured().Rounds) > 0 {
		t.Error("memory was copied")
	}
	if _, err := m.Resume(t.Context()); err != nil {
		t.Error(err)
	}
	v.killChildren()
}

// awaitChange waits until the victim has done what its kind does.
func (v *victim) awaitChange(kind string) {
	p := procfs.Process{PID: v.pid}
	changed := func() bool {
		switch kind {
		case "exec":
			exe, err := p.Link("exe")
			return err == nil && strings.HasSuffix(exe, "sleep")
		case "fork":
			// The first child is one by which Go tries out what the kernel can do.
			children, err := p.Children()
			return err == nil && slices.ContainsFunc(children, func(child int) bool {
				stat, err := procfs.Process{PID: child}.Stat()
				return err == nil && stat.Command == "sleep"
			})
		}
		stat, err := p.Stat()
		return err != nil || stat.State == 'Z'
	}
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for !changed() {
		<-ticker.C
	}
}

func (v *victim) killChildren() {
	v.t.Helper()
	children, err := procfs.Process{PID: v.pid}.Children()
	if err != nil && !errors.Is(err, procfs.ErrGone) {
		v.t.Error(err)
	}
	for _, child := range children {
		if err := unix.Kill(child, unix.SIGKILL); err != nil {
			v.t.Error(err)
		}
	}
}

// A process that writes faster than its pages travel is frozen all the same,
// unless the downtime is a promise.
func TestRoundsStop(t *testing.T) {
	for _, strict := range []bool{false, true} {
		t.Run(fmt.Sprintf("strict=%v", strict), func(t *testing.T) {
			h := newHost(t)
			v := startVictim(t, "greedy")
			was := look(t, h, v.pid)
			m := start(t, h, v.pid, migrate.Options{MaxDowntime: time.Millisecond, Rehearse: true, Strict: strict})
			r, events := newReplica(), &recorder{}
			err := m.Run(t.Context(), r.connect(t), events)
			if strict != errors.Is(err, ErrDowntime) || strict != (err != nil) {
				t.Fatalf("run ends with %v", err)
			}
			if strict != (events.frozen == 0) || r.rounds >= migrate.DefaultMaxRounds {
				t.Errorf("%d times frozen after %d rounds", events.frozen, r.rounds)
			}
			if !strict {
				r.compare(t, v.pid)
			}
			if _, err := m.Resume(t.Context()); err != nil {
				t.Error(err)
			}
			was.untouched(t, h, v.pid)
			v.finish()
		})
	}
}

func TestGuardsAndObjects(t *testing.T) {
	h := newHost(t)
	v := startVictim(t, "open")
	m := start(t, h, v.pid, migrate.Options{Rehearse: true, Verify: true})
	r := newReplica()
	if err := m.Run(t.Context(), r.connect(t), &recorder{}); err != nil {
		t.Fatal(err)
	}
	r.compare(t, v.pid)
	checkVerify(t, r)
	if n := union(r.image.Processes[0].Memory.Guards).bytes(); n != 16<<10 {
		t.Errorf("%d bytes of guard pages", n)
	}
	if len(m.objects) != 1 || m.objects[0].sent.bytes() != 4*4096 {
		t.Errorf("%d objects", len(m.objects))
	}
	for i, o := range m.objects {
		r.compareObject(t, i, o.file)
	}
	if _, err := m.Resume(t.Context()); err != nil {
		t.Error(err)
	}
	v.finish()
}

// Signals that reach the frozen copy are forwarded; those that were pending
// before are in the image.
func TestLateSignals(t *testing.T) {
	h := newHost(t)
	v := startVictim(t, "idle")
	m := start(t, h, v.pid, migrate.Options{})
	r := newReplica()
	if err := m.Run(t.Context(), r.connect(t), &recorder{}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(unix.Kill(v.pid, unix.SIGUSR1), unix.Tgkill(v.pid, v.pid, unix.SIGUSR2)); err != nil {
		t.Fatal(err)
	}
	if err := m.Dispose(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := r.wait(); err != nil {
		t.Fatal(err)
	}
	v.ended = true
	if r.signals == nil || len(r.signals.Processes) != 1 {
		t.Fatalf("signals %+v", r.signals)
	}
	number := func(infos [][]byte) (numbers []int) {
		for _, info := range infos {
			s := parasite.SigInfo(info)
			numbers = append(numbers, s.Signal())
		}
		return numbers
	}
	p := r.signals.Processes[0]
	if !slices.Equal(number(p.Shared), []int{int(unix.SIGUSR1)}) || len(p.Threads) != 1 ||
		p.Threads[0].TID != v.pid || !slices.Equal(number(p.Threads[0].Pending), []int{int(unix.SIGUSR2)}) {
		t.Errorf("signals %+v", p)
	}
}

// Somebody kills the frozen copy, and then the migration is aborted.
func TestKilledAtSource(t *testing.T) {
	h := newHost(t)
	v := startVictim(t, "idle")
	m := start(t, h, v.pid, migrate.Options{})
	if err := m.Run(t.Context(), newReplica().connect(t), &recorder{}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(v.pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	resumed, err := m.Resume(t.Context())
	if err != nil || !resumed.KilledAtSource {
		t.Errorf("%+v, %v", resumed, err)
	}
	v.ended = true
	if _, err := os.Stat(m.group.Dir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("group is left over: %v", err)
	}
}

// A process that was stopped by a signal stays so.
func TestJobStopped(t *testing.T) {
	h := newHost(t)
	v := startVictim(t, "idle")
	state := func() byte {
		stat, err := procfs.Process{PID: v.pid}.Stat()
		if err != nil {
			t.Fatal(err)
		}
		return stat.State
	}
	if err := unix.Kill(v.pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	var status unix.WaitStatus
	if _, err := unix.Wait4(v.pid, &status, unix.WUNTRACED, nil); err != nil || !status.Stopped() {
		t.Fatalf("status %#x, %v", status, err)
	}
	m := start(t, h, v.pid, migrate.Options{Rehearse: true})
	r := newReplica()
	if err := m.Run(t.Context(), r.connect(t), &recorder{}); err != nil {
		t.Fatal(err)
	}
	if !r.image.Processes[0].JobStopped {
		t.Error("the image says that the process was running")
	}
	if _, err := m.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	// The signal that was sent last decides; the process cannot have run on.
	if s := state(); s != 'T' && s != 't' {
		t.Errorf("state %c instead of T", s)
	}
	if err := unix.Kill(v.pid, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	v.finish()
}
