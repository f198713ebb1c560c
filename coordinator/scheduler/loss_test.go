package scheduler_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pagurus-project/pagurus/coordinator/clustertest/agenttest"
	"github.com/pagurus-project/pagurus/coordinator/scheduler"
	"github.com/pagurus-project/pagurus/migrate"
)

// allSteps of a move, with the host at which they happen.
var allSteps = []struct {
	host string
	step agenttest.Step
}{
	{"host-a", agenttest.Inspect},
	{"host-b", agenttest.Reserve},
	{"host-a", agenttest.Start},
	{"host-a", agenttest.Progress},
	{"host-a", agenttest.Freeze},
	{"host-b", agenttest.Prepare},
	{"host-a", agenttest.Promise},
	{"host-a", agenttest.Promised},
	{"host-b", agenttest.Run},
	{"host-b", agenttest.Running},
	{"host-a", agenttest.Dispose},
	{"host-a", agenttest.Forget},
	{"host-b", agenttest.Forget},
}

// once calls f the first time that a step is reached.
func (x *fixture) once(host string, step agenttest.Step, f func()) {
	var done atomic.Bool
	x.world.OnStep(func(h string, s agenttest.Step) {
		if h == host && s == step && done.CompareAndSwap(false, true) {
			f()
		}
	})
}

func TestCancelAtEachStep(t *testing.T) {
	for _, at := range allSteps {
		t.Run(string(at.step)+" "+at.host, func(t *testing.T) {
			run(t, func(t *testing.T, x *fixture) {
				result := make(chan error, 1)
				x.once(at.host, at.step, func() {
					_, err := x.s.Cancel(context.Background(), x.log.Records()[0].ID, "anna")
					result <- err
				})
				id := x.create(migrate.Options{})
				err := <-result
				if errors.Is(err, scheduler.ErrTooLate) {
					x.settle(id, migrate.StateDone)
				} else if r := x.settle(id, migrate.StateAborted); err != nil || r.Reason != "cancelled by anna" {
					t.Errorf("cancelled: %v, reason %q", err, r.Reason)
				}
				// From the destination's COMMIT on it is too late, and up to
				// PREPARED it is not.
				i := slices.Index(allSteps, at)
				if late := errors.Is(err, scheduler.ErrTooLate); late != (i >= 8) {
					t.Errorf("too late: %v", late)
				}
				// Again: the same answer.
				if _, again := x.s.Cancel(t.Context(), id, "anna"); errors.Is(again, scheduler.ErrTooLate) != (err != nil) {
					t.Errorf("first %v, then %v", err, again)
				}
			})
		})
	}
}

// TestAgentLostAtEachStep kills the agent that has reached a step and brings
// it back a while later: soon, or after everybody has given it up.
func TestAgentLostAtEachStep(t *testing.T) {
	for _, at := range allSteps {
		for _, away := range []time.Duration{time.Second, 3 * time.Minute} {
			t.Run(fmt.Sprintf("%s %s %v", at.step, at.host, away), func(t *testing.T) {
				run(t, func(t *testing.T, x *fixture) {
					agent := x.a
					if at.host == "host-b" {
						agent = x.b
					}
					back := make(chan struct{})
					x.once(at.host, at.step, func() {
						agent.Kill()
						time.AfterFunc(away, func() {
							agent.Restart()
							close(back)
						})
					})
					id := x.create(migrate.Options{})
					<-back
					r := x.await(id, func(r migrate.Report) bool { return r.Settled })
					x.settle(id, r.State)
					want := migrate.StateAborted
					switch i := slices.Index(allSteps, at); {
					case i < 2:
						// In preflight a host that is away for long is a
						// blocker, and one that is back soon is not.
						want = migrate.StateDone
						if away > scheduler.DefaultTiming().Reach {
							want = migrate.StateRefused
						}
					case at.step == agenttest.Start && away < scheduler.DefaultTiming().Silence:
						want = migrate.StateDone // the order is repeated
					case i >= 7: // the promise stands
						want = migrate.StateDone
					}
					if at.step == agenttest.Promised && away > scheduler.DefaultTiming().Silence {
						want = migrate.StateAborted // nobody heard of it
					}
					if r.State != want {
						t.Errorf("ended %s (%s) instead of %s", r.State, r.Reason, want)
					}
				})
			})
		}
	}
}

// TestLeaderLostAtEachStep: another leader takes over with nothing but the log.
func TestLeaderLostAtEachStep(t *testing.T) {
	for _, at := range allSteps {
		for _, rehearse := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s %s rehearse=%v", at.step, at.host, rehearse), func(t *testing.T) {
				run(t, func(t *testing.T, x *fixture) {
					reached := false
					x.once(at.host, at.step, func() {
						reached = true
						x.loseLeadership()
						<-time.After(time.Second)
						x.lead()
					})
					id := x.create(migrate.Options{Rehearse: rehearse})
					r := x.await(id, func(r migrate.Report) bool { return r.Settled })
					x.settle(id, r.State)
					want := migrate.StateDone
					if rehearse {
						want = migrate.StateRehearsed
					}
					// The order to start was lost with the leader: its successor
					// cannot know whether the source has it, and asks.
					if at.step == agenttest.Start && r.State == migrate.StateAborted {
						want = migrate.StateAborted
					}
					if reached && r.State != want {
						t.Errorf("ended %s (%s) instead of %s", r.State, r.Reason, want)
					}
				})
			})
		}
	}
}

// TestUnknownResults: writes fail, half of them although they are in the log.
func TestUnknownResults(t *testing.T) {
	for _, written := range []bool{false, true} {
		t.Run(fmt.Sprintf("written=%v", written), func(t *testing.T) {
			run(t, func(_ *testing.T, x *fixture) {
				failed := map[string]bool{}
				x.log.fault = func(e migrate.Event) (before, after error) {
					kind := fmt.Sprintf("%T", e)
					if failed[kind] {
						return nil, nil
					}
					failed[kind] = true
					if written {
						return nil, errLog
					}
					return errLog, nil
				}
				x.settle(x.create(migrate.Options{}), migrate.StateDone)
				if len(failed) != 6 {
					x.t.Errorf("failed: %v", failed)
				}
			})
		})
	}
}

// TestTimeOuts: how long the leader waits for whom, to the second.
func TestTimeOuts(t *testing.T) {
	timing := scheduler.DefaultTiming()
	for _, tt := range []struct {
		name   string
		steps  func(x *fixture)
		after  time.Duration
		reason string
	}{
		{
			"source silent and gone", func(x *fixture) {
				x.once("host-a", agenttest.Progress, func() { x.a.Kill() })
			}, timing.Silence, "host-a has been silent for 30s",
		},
		{
			"destination lost at the promise", func(x *fixture) {
				// Its PREPARED came to the source, but not to us.
				x.world.OnStep(func(host string, step agenttest.Step) {
					if step == agenttest.Promise {
						x.b.Kill()
						x.b.Wait()
						x.loseLeadership()
						x.lead()
					}
				})
			}, timing.Prepared, "host-b was not prepared within 1m0s of the source's promise",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			run(t, func(t *testing.T, x *fixture) {
				began := time.Now()
				tt.steps(x)
				id := x.create(migrate.Options{})
				r := x.await(id, func(r migrate.Report) bool { return r.State.Final() })
				if took := time.Since(began); took < tt.after || took > tt.after+timing.Ask {
					t.Errorf("decided after %v, not %v", took, tt.after)
				}
				if r.State != migrate.StateAborted || r.Reason != tt.reason {
					t.Errorf("%s: %s", r.State, r.Reason)
				}
			})
		})
	}
}

// TestSilentButAlive: a source that has nothing to say for an hour is asked,
// and left alone if it answers.
func TestSilentButAlive(t *testing.T) {
	run(t, func(_ *testing.T, x *fixture) {
		x.once("host-a", agenttest.Freeze, func() { <-time.After(time.Hour) })
		id := x.create(migrate.Options{})
		x.await(id, func(r migrate.Report) bool { return r.Progress != nil && r.Progress.Round == 1 })
		<-time.After(time.Hour)
		x.settle(id, migrate.StateDone)
	})
}
