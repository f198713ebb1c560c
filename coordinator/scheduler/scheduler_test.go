package scheduler_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pagurus-project/pagurus/coordinator/clustertest/agenttest"
	"github.com/pagurus-project/pagurus/coordinator/scheduler"
	"github.com/pagurus-project/pagurus/migrate"
)

func TestMove(t *testing.T) {
	run(t, func(t *testing.T, x *fixture) {
		id := x.create(migrate.Options{})
		r := x.settle(id, migrate.StateDone)
		report := r.Report()
		if report.DowntimeMS != 4 || report.Bytes != 413696 || report.WireBytes != 1010 || len(report.Rounds) != 2 {
			t.Errorf("measured %+v", report)
		}
		for phase, want := range map[string]float64{
			migrate.PhasePrecopy: 6, migrate.PhaseStop: 1, migrate.PhaseTransfer: 0.5,
			migrate.PhaseRestore: 1.5, migrate.PhaseDecide: 0.5, migrate.PhaseResume: 0.5,
		} {
			if got := report.PhasesMS[phase]; got != want {
				t.Errorf("phase %s took %v instead of %v", phase, got, want)
			}
		}
		if report.Command != "work 7" || !report.Options.Equal(migrate.Options{}.WithDefaults()) {
			t.Errorf("report %+v", report)
		}
		var entries []string
		for _, e := range x.log.entries {
			entries = append(entries, strings.TrimPrefix(fmt.Sprintf("%T", e), "migrate."))
		}
		want := []string{"Created", "PreflightDone", "Decided", "Running", "SourceSettled", "Forgotten"}
		if diff := cmp.Diff(want, entries); diff != "" {
			t.Error(diff)
		}
	})
}

func TestStatesAsSeen(t *testing.T) {
	run(t, func(t *testing.T, x *fixture) {
		var seen []migrate.State
		var id string
		x.world.OnStep(func(_ string, step agenttest.Step) {
			// What is to be seen before each step, without those that an
			// order is given and taken for in one moment.
			switch step {
			case agenttest.Inspect, agenttest.Progress, agenttest.Freeze, agenttest.Prepare, agenttest.Run, agenttest.Dispose:
				for _, r := range x.s.Migrations() {
					id = r.ID
					if !slices.Contains(seen, r.State) {
						seen = append(seen, r.State)
					}
				}
			case agenttest.Promised:
				x.await(id, func(r migrate.Report) bool { return r.State == migrate.StatePrepared })
				seen = append(seen, migrate.StatePrepared)
			}
		})
		x.settle(x.create(migrate.Options{}), migrate.StateDone)
		want := []migrate.State{
			migrate.StatePreflight, migrate.StatePrecopy, migrate.StateFrozen, migrate.StatePrepared, migrate.StateCommitted,
		}
		if diff := cmp.Diff(want, seen); diff != "" {
			t.Error(diff)
		}
	})
}

func TestRehearsal(t *testing.T) {
	run(t, func(_ *testing.T, x *fixture) {
		r := x.settle(x.create(migrate.Options{Rehearse: true}), migrate.StateRehearsed)
		if r.Measured.DowntimeMS != 9 || r.Reason != "" {
			x.t.Errorf("downtime %v, reason %q", r.Measured.DowntimeMS, r.Reason)
		}
	})
}

func TestRefused(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*fixture)
		move   scheduler.Move
		want   []migrate.Code
	}{
		{"source and destination", func(x *fixture) {
			x.a.InspectBlockers = []migrate.Code{migrate.CodeChildren, migrate.CodeDescriptor}
			x.b.ReserveBlockers = []migrate.Code{migrate.CodePIDTaken}
		}, scheduler.Move{PID: 7, From: "host-a", To: "host-b"}, []migrate.Code{migrate.CodeChildren, migrate.CodeDescriptor, migrate.CodePIDTaken}},
		{
			"destination alone", func(x *fixture) { x.b.ReserveBlockers = []migrate.Code{migrate.CodeMemory} },
			scheduler.Move{PID: 7, From: "host-a", To: "host-b"},
			[]migrate.Code{migrate.CodeMemory},
		},
		{
			"destination that cannot make a shell", func(x *fixture) { x.b.ReserveFails = true },
			scheduler.Move{PID: 7, From: "host-a", To: "host-b"},
			[]migrate.Code{migrate.CodeReserve},
		},
		{
			"same host, and the process has gone", func(*fixture) {},
			scheduler.Move{PID: 8, From: "host-a", To: "host-a"},
			[]migrate.Code{migrate.CodeSameHost, migrate.CodeNoSuchProcess},
		},
		{
			"hosts that nobody knows", func(*fixture) {},
			scheduler.Move{PID: 7, From: "host-x", To: "host-y"},
			[]migrate.Code{migrate.CodeNoSuchHost, migrate.CodeNoSuchHost},
		},
		{
			"destination that nobody knows", func(x *fixture) { x.a.InspectBlockers = []migrate.Code{migrate.CodeChildren} },
			scheduler.Move{PID: 7, From: "host-a", To: "host-y"},
			[]migrate.Code{migrate.CodeChildren, migrate.CodeNoSuchHost},
		},
		{
			"both down", func(x *fixture) { x.a.Kill(); x.b.Kill() },
			scheduler.Move{PID: 7, From: "host-a", To: "host-b"},
			[]migrate.Code{migrate.CodeHostDown, migrate.CodeHostDown},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			run(t, func(t *testing.T, x *fixture) {
				tt.change(x)
				check, err := x.s.Check(t.Context(), tt.move.PID, tt.move.From, tt.move.To, tt.move.Options)
				if err != nil || check.Movable {
					t.Errorf("check: %+v, %v", check, err)
				}
				created, err := x.s.Create(t.Context(), tt.move)
				if err != nil {
					t.Fatal(err)
				}
				r := x.settle(created.ID, migrate.StateRefused)
				for _, found := range [][]migrate.Finding{check.Blockers, r.Blockers} {
					var codes []migrate.Code
					for _, b := range found {
						codes = append(codes, b.Code)
						if b.Detail == "" || b.Hint == "" {
							t.Errorf("no sentence for people in %+v", b)
						}
					}
					if diff := cmp.Diff(tt.want, codes); diff != "" {
						t.Error(diff)
					}
				}
			})
		})
	}
}

// TestPreflightNeverEnds: an agent that hangs is given up after a while, and
// what the destination may have reserved is released.
func TestPreflightNeverEnds(t *testing.T) {
	run(t, func(t *testing.T, x *fixture) {
		began := time.Now()
		first := true
		x.world.OnStep(func(_ string, step agenttest.Step) {
			if step == agenttest.Reserve && first {
				first = false
				<-time.After(scheduler.DefaultTiming().Preflight + time.Second)
			}
		})
		id := x.create(migrate.Options{})
		r := x.await(id, func(r migrate.Report) bool { return r.State == migrate.StateRefused })
		if took := time.Since(began); took != scheduler.DefaultTiming().Preflight || r.Blockers[0].Code != migrate.CodeHostDown {
			t.Errorf("refused after %v with %v", took, r.Blockers)
		}
		x.await(id, func(r migrate.Report) bool { return r.Settled })
		if r, _ := x.log.Record(id); r.Target != migrate.OutcomeUnknown {
			t.Errorf("nobody asked the destination to release: %q", r.Target)
		}
		<-time.After(time.Minute) // the order ends
	})
}

func TestOneMigrationPerProcess(t *testing.T) {
	run(t, func(t *testing.T, x *fixture) {
		frozen, hold := make(chan struct{}), make(chan struct{})
		x.world.OnStep(func(_ string, step agenttest.Step) {
			if step == agenttest.Freeze {
				close(frozen)
				<-hold
			}
		})
		id := x.create(migrate.Options{})
		second := x.create(migrate.Options{})
		r, _ := x.log.Record(second)
		if r.State != migrate.StateRefused || r.Blockers[0].Code != migrate.CodeBusy || !strings.Contains(r.Blockers[0].Detail, id) {
			t.Errorf("second is %+v", r)
		}
		check, err := x.s.Check(t.Context(), 7, "host-a", "", migrate.Options{})
		if err != nil || check.Movable || check.Blockers[0].Code != migrate.CodeBusy || len(check.Tree) != 1 {
			t.Errorf("check: %+v, %v", check, err)
		}
		<-frozen
		x.a.InspectBlockers = []migrate.Code{migrate.CodeBusy} // the agent knows, too
		if check, err = x.s.Check(t.Context(), 7, "host-a", "", migrate.Options{}); err != nil || len(check.Blockers) != 1 {
			t.Errorf("check: %+v, %v", check, err)
		}
		close(hold)
		x.settle(id, migrate.StateDone)
	})
}

func TestIdempotencyKey(t *testing.T) {
	run(t, func(t *testing.T, x *fixture) {
		move := scheduler.Move{PID: 7, From: "host-a", To: "host-b", Key: "k"}
		first, err := x.s.Create(t.Context(), move)
		if err != nil {
			t.Fatal(err)
		}
		x.settle(first.ID, migrate.StateDone)
		again, err := x.s.Create(t.Context(), move)
		if err != nil || again.ID != first.ID || again.State != migrate.StateDone {
			t.Errorf("got %+v, %v", again, err)
		}
		move.PID = 8
		if _, err := x.s.Create(t.Context(), move); !errors.Is(err, scheduler.ErrKeyReused) {
			t.Errorf("another request with the key: %v", err)
		}
	})
}

func TestNeverRan(t *testing.T) {
	run(t, func(t *testing.T, x *fixture) {
		x.b.NeverRuns = true
		r := x.settle(x.create(migrate.Options{}), migrate.StateReverted)
		if r.Reason != "host-b could not run it: because" || r.Measured.DowntimeMS != 9 {
			t.Errorf("reason %q, downtime %v", r.Reason, r.Measured.DowntimeMS)
		}
	})
}

func TestKilledAtSource(t *testing.T) {
	run(t, func(t *testing.T, x *fixture) {
		x.a.KilledFrozen = true
		id := x.create(migrate.Options{Rehearse: true})
		r := x.await(id, func(r migrate.Report) bool { return r.Settled })
		if r.State != migrate.StateRehearsed || r.Reason != "killed at the source" || r.Source != migrate.OutcomeKilled {
			t.Errorf("got %+v", r)
		}
	})
}

// TestLost: whoever looks for the process learns what it runs on without,
// whether the source gave up by itself or was told to.
func TestLost(t *testing.T) {
	for _, rehearse := range []bool{true, false} {
		run(t, func(t *testing.T, x *fixture) {
			x.a.Lost = "its lock"
			x.once("host-b", agenttest.Run, func() { x.b.NeverRuns = true })
			id := x.create(migrate.Options{Rehearse: rehearse})
			r := x.await(id, func(r migrate.Report) bool { return r.Settled })
			if r.State == migrate.StateDone || r.Source != migrate.OutcomeResumed || strings.Count(r.Reason, "its lock") != 1 {
				t.Errorf("got %+v", r)
			}
		})
	}
}

// TestFence: the destination is lost for ever after COMMIT, and only a person
// can say so.
func TestFence(t *testing.T) {
	run(t, func(t *testing.T, x *fixture) {
		x.once("host-b", agenttest.Run, func() { x.b.Kill() })
		id := x.create(migrate.Options{})
		x.await(id, func(r migrate.Report) bool {
			return strings.Contains(r.Reason, "waiting for host-b to run the process")
		})
		if _, err := x.s.Cancel(t.Context(), id, "anna"); !errors.Is(err, scheduler.ErrTooLate) {
			t.Errorf("cancelled after COMMIT: %v", err)
		}
		<-time.After(24 * time.Hour)
		if r, _ := x.log.Record(id); r.State != migrate.StateCommitted {
			t.Fatalf("without a word from anybody it became %s", r.State)
		}
		if _, err := x.s.Fence(t.Context(), "m9", "anna"); !errors.Is(err, scheduler.ErrNoSuchMigration) {
			t.Errorf("fenced nothing: %v", err)
		}
		if _, err := x.s.Fence(t.Context(), id, "anna"); err != nil {
			t.Fatal(err)
		}
		r := x.await(id, func(r migrate.Report) bool { return r.Settled })
		if r.State != migrate.StateReverted || r.Reason != "host-b was fenced by anna before it ran the process" {
			t.Errorf("got %+v", r)
		}
		if exists, running := r.Source == migrate.OutcomeResumed, r.Target == migrate.OutcomeFenced; !exists || !running {
			t.Errorf("got %+v", r)
		}
	})
}

func TestFenceAfterRunning(t *testing.T) {
	run(t, func(t *testing.T, x *fixture) {
		id := x.create(migrate.Options{})
		x.settle(id, migrate.StateDone)
		if _, err := x.s.Fence(t.Context(), id, "anna"); !errors.Is(err, scheduler.ErrTooLate) {
			t.Errorf("fenced what runs: %v", err)
		}
	})
}
