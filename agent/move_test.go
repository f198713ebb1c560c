package agent

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/pagurus-project/pagurus/migrate"
	migratev1 "github.com/pagurus-project/pagurus/proto/migrate/v1"
)

func TestMove(t *testing.T) {
	m := newCluster(t).newMove("m1")
	m.reserve()
	m.b.must(map[int]string{pid: "shell"})
	m.start()
	m.awaitPrepared()
	if got := m.awaitPromised(); !cmp.Equal(got, measuredToProto(measuredByFake), protocmp.Transform()) {
		t.Errorf("promised %v", got)
	}
	m.a.must(map[int]string{pid: "frozen"})
	m.b.must(map[int]string{pid: "shell"})

	resp := m.commit()
	if resp.GetDowntimeMs() != 2.5 || resp.GetPhasesMs()[migrate.PhaseRestore] != 1.5 {
		t.Errorf("RUNNING with %v", resp)
	}
	m.b.must(map[int]string{pid: "running"})
	m.a.must(map[int]string{pid: "frozen"}) // until it is told
	m.dispose()
	m.mustRunAt(m.b)
	m.forget()
}

// TestOrdersAreIdempotent gives each order three times, twice of these at once.
func TestOrdersAreIdempotent(t *testing.T) {
	m := newCluster(t).newMove("m1")
	thrice := func(order func() string) {
		t.Helper()
		answers := make([]string, 2)
		var wg sync.WaitGroup
		for i := range answers {
			wg.Go(func() { answers[i] = order() })
		}
		wg.Wait()
		answers = append(answers, order())
		for _, a := range answers {
			if a != answers[0] {
				t.Errorf("answers differ: %q", answers)
			}
		}
	}
	thrice(func() string {
		resp, err := m.b.orders.Reserve(t.Context(), m.reserveRequest())
		return fmt.Sprint(resp.GetPageAddress(), resp.GetBlockers(), err)
	})
	m.reserve()
	thrice(func() string {
		_, err := m.a.orders.Start(t.Context(), m.startRequest())
		return fmt.Sprint(err)
	})
	m.awaitPrepared()
	m.awaitPromised()
	thrice(func() string {
		resp, err := m.b.orders.Decide(t.Context(), &migratev1.DecideRequest{Ref: m.ref, Decision: migratev1.Decision_DECISION_COMMIT})
		return fmt.Sprint(resp.GetOutcome(), resp.GetDowntimeMs(), err)
	})
	thrice(func() string {
		_, err := m.a.orders.Dispose(t.Context(), &migratev1.DisposeRequest{Ref: m.ref})
		return fmt.Sprint(err)
	})
	m.mustRunAt(m.b)
	m.forget()
	_, err := m.a.orders.Forget(t.Context(), &migratev1.ForgetRequest{Ref: m.ref})
	mustCode(t, err, codes.NotFound)
	_, err = m.a.orders.Dispose(t.Context(), &migratev1.DisposeRequest{Ref: m.ref})
	mustCode(t, err, codes.NotFound)
	m.decide(m.b, migratev1.Decision_DECISION_COMMIT, migratev1.Outcome_OUTCOME_UNKNOWN)
}

// TestAbort gives ABORT wherever a migration can stand.
func TestAbort(t *testing.T) {
	for _, at := range []string{"reserve", "start", "freeze", "send", "prepare", "promise", "promised"} {
		t.Run(at, func(t *testing.T) {
			m := newCluster(t).newMove("m1")
			var g *gate
			switch at {
			case "reserve", "prepare":
				g = m.b.gate(at)
			case "promised":
			default:
				g = m.a.gate(at)
			}
			if at == "reserve" {
				reserved := make(chan error)
				go func() {
					_, err := m.b.orders.Reserve(t.Context(), m.reserveRequest())
					reserved <- err
				}()
				g.reach(t)
				released := make(chan *migratev1.DecideResponse)
				go func() {
					resp, _ := m.b.orders.Decide(t.Context(), &migratev1.DecideRequest{Ref: m.ref, Decision: migratev1.Decision_DECISION_ABORT})
					released <- resp
				}()
				close(g.open)
				<-reserved
				if resp := <-released; resp.GetOutcome() != migratev1.Outcome_OUTCOME_RELEASED {
					t.Errorf("answers %v", resp)
				}
				m.mustRunAt(m.a)
				m.forget()
				return
			}
			m.reserve()
			m.start()
			if g == nil {
				m.awaitPromised()
			} else {
				g.reach(t)
			}
			m.abort()
			m.mustRunAt(m.a)
			m.forget()
		})
	}
}

// TestAbortSaysWhatTheFreezeCost: only one that was frozen has a downtime.
func TestAbortSaysWhatTheFreezeCost(t *testing.T) {
	for at, want := range map[string]float64{"freeze": 0, "send": 9} {
		m := newCluster(t).newMove("m1")
		m.a.lost = "its lock"
		g := m.a.gate(at)
		m.reserve()
		m.start()
		g.reach(t)
		resp := m.decide(m.a, migratev1.Decision_DECISION_ABORT, migratev1.Outcome_OUTCOME_RESUMED)
		if resp.GetDowntimeMs() != want || (resp.GetLost() == "its lock") != (want > 0) {
			t.Errorf("aborted before %s: %v, want a downtime of %v", at, resp, want)
		}
	}
}

// TestSourceGivesUp: whatever fails before the promise, the process is resumed
// first and the end is reported until the log has it.
func TestSourceGivesUp(t *testing.T) {
	for _, at := range []string{"start", "freeze", "send", "promise"} {
		t.Run(at, func(t *testing.T) {
			m := newCluster(t).newMove("m1")
			m.a.failing[at] = 1
			m.a.lost = "its lock"
			m.a.failing["resume"] = 3 // not at the first try
			m.reserve()
			m.start()
			got := m.awaitEnded(m.a)
			if got.GetReason() != at+" fails" || got.GetRehearsed() || got.GetOutcome() != migratev1.Outcome_OUTCOME_RESUMED || (got.GetLost() == "its lock") != (got.GetMeasured().GetDowntimeMs() > 0) {
				t.Errorf("ended with %v", got)
			}
			m.a.must(map[int]string{pid: "running"})
			m.log.awaitTwice(t, "the end again", func(r *migratev1.ReportRequest) bool { return r.GetEnded() != nil && r.GetHost() == "host-a" })
			m.abort()
			m.mustRunAt(m.a)
			m.forget()
		})
	}
}

func TestTargetGivesUp(t *testing.T) {
	m := newCluster(t).newMove("m1")
	m.b.failing["prepare"] = 1
	m.b.failing["release"] = 3
	m.reserve()
	m.start()
	if got := m.awaitEnded(m.b).GetReason(); got != "prepare fails" {
		t.Errorf("the destination ended with %q", got)
	}
	if got := m.awaitEnded(m.a).GetReason(); got != "failed: prepare fails" {
		t.Errorf("the source ended with %q", got)
	}
	m.mustRunAt(m.a)
	// A log that went mad learns at least that it never ran.
	m.decide(m.b, migratev1.Decision_DECISION_COMMIT, migratev1.Outcome_OUTCOME_NEVER_RAN)
	m.decide(m.a, migratev1.Decision_DECISION_ABORT, migratev1.Outcome_OUTCOME_RESUMED)
	m.forget()
}

// TestSourceHasTheWord on why it failed: the destination waits with its own
// report, unless there may be no later.
func TestSourceHasTheWord(t *testing.T) {
	m := newCluster(t, func(t *Timing) { t.Yield = time.Hour }).newMove("m1")
	m.b.failing["prepare"] = 1
	m.reserve()
	m.start()
	m.awaitEnded(m.a)
	<-m.b.agent.all()[0].over
	m.mustRunAt(m.a)
	m.log.mu.Lock()
	for _, r := range m.log.reports {
		if r.GetHost() == "host-b" {
			t.Errorf("the destination reports %v", r)
		}
	}
	m.log.mu.Unlock()
	m.b.stop()
	m.awaitEnded(m.b)
}

func TestRehearsal(t *testing.T) {
	m := newCluster(t).newMove("m1")
	m.options = &migratev1.Options{Rehearse: true}
	m.reserve()
	m.start()
	got := m.awaitEnded(m.a)
	if !got.GetRehearsed() || got.GetReason() != "" || got.GetMeasured().GetDowntimeMs() != 9 || len(got.GetMeasured().GetRounds()) != 2 {
		t.Errorf("ended with %v", got)
	}
	m.abort()
	m.mustRunAt(m.a)
	m.forget()
}

func TestKilledAtSource(t *testing.T) {
	m := newCluster(t).newMove("m1")
	m.reserve()
	m.start()
	m.awaitPromised()
	m.a.mu.Lock()
	m.a.killed = true
	m.a.mu.Unlock()
	m.decide(m.a, migratev1.Decision_DECISION_ABORT, migratev1.Outcome_OUTCOME_KILLED_AT_SOURCE)
	m.decide(m.b, migratev1.Decision_DECISION_ABORT, migratev1.Outcome_OUTCOME_RELEASED)
	m.forget()
}

// TestDecisionComesAsAnAnswer: an answer to a report is carried out without
// waiting for the order.
func TestDecisionComesAsAnAnswer(t *testing.T) {
	t.Run("commit", func(t *testing.T) {
		m := newCluster(t).newMove("m1")
		ran := m.b.gate("ran")
		m.reserve()
		m.start()
		m.awaitPromised()
		m.awaitPrepared()
		m.log.hold("m1", migratev1.Decision_DECISION_COMMIT)
		ran.reach(t)
		close(ran.open)
		m.a.must(map[int]string{pid: "frozen"})
		m.commit()
		m.dispose()
		m.mustRunAt(m.b)
		m.forget()
	})
	t.Run("abort", func(t *testing.T) {
		m := newCluster(t).newMove("m1")
		g := m.a.gate("resume")
		m.reserve()
		m.start()
		m.awaitPromised()
		m.log.hold("m1", migratev1.Decision_DECISION_ABORT)
		g.reach(t)
		close(g.open)
		m.abort()
		m.mustRunAt(m.a)
		m.forget()
	})
}

// TestLostReports: no coordinator answers for a while. The source stays frozen
// and goes on asking; a destination that is prepared does not run.
func TestLostReports(t *testing.T) {
	m := newCluster(t).newMove("m1")
	m.reserve()
	m.log.setDown(true)
	m.start()
	m.awaitPromised()
	m.awaitPrepared()
	before := m.log.count()
	for _, host := range []string{"host-a", "host-b"} {
		m.log.await(t, before, "again", func(r *migratev1.ReportRequest) bool { return r.GetHost() == host })
	}
	m.a.must(map[int]string{pid: "frozen"})
	m.b.must(map[int]string{pid: "shell"})
	m.log.hold("m1", migratev1.Decision_DECISION_COMMIT)
	m.log.setDown(false)
	m.commit()
	m.dispose()
	m.mustRunAt(m.b)
	m.forget()
}

// TestReverted: COMMIT, but somebody has killed the shell. The destination
// attests it and the source, which has heard of the COMMIT, resumes.
func TestReverted(t *testing.T) {
	m := newCluster(t).newMove("m1")
	m.reserve()
	m.start()
	m.awaitPromised()
	m.awaitPrepared()
	if err := m.b.turn(pid, "", "shell"); err != nil {
		t.Fatal(err)
	}
	m.log.hold("m1", migratev1.Decision_DECISION_COMMIT)
	m.decide(m.a, migratev1.Decision_DECISION_COMMIT, migratev1.Outcome_OUTCOME_UNSPECIFIED)
	resp := m.decide(m.b, migratev1.Decision_DECISION_COMMIT, migratev1.Outcome_OUTCOME_NEVER_RAN)
	if resp.GetDetail() != "somebody has killed the shell" {
		t.Errorf("attests %v", resp)
	}
	m.decide(m.a, migratev1.Decision_DECISION_ABORT, migratev1.Outcome_OUTCOME_RESUMED)
	m.mustRunAt(m.a)
	m.forget()
}

// TestCommitIsRetried: what fails after COMMIT is tried again until it works.
func TestCommitIsRetried(t *testing.T) {
	m := newCluster(t).newMove("m1")
	m.b.failing["commit"], m.b.failing["ran"], m.a.failing["dispose"] = 3, 3, 3
	m.reserve()
	m.start()
	m.awaitPrepared()
	m.awaitPromised()
	m.commit()
	m.dispose()
	m.mustRunAt(m.b)
	m.forget()
}

// TestFenced: COMMIT cannot be carried out, and an operator turns the log to
// ABORT meanwhile.
func TestFenced(t *testing.T) {
	m := newCluster(t).newMove("m1")
	m.b.failing["commit"] = 1 << 30
	m.reserve()
	m.start()
	m.awaitPrepared()
	m.awaitPromised()
	m.log.hold("m1", migratev1.Decision_DECISION_COMMIT)
	m.awaitPrepared()
	m.abort()
	m.mustRunAt(m.a)
	m.forget()
}

// TestReservationExpires: nobody starts, so the shell goes.
func TestReservationExpires(t *testing.T) {
	m := newCluster(t, func(t *Timing) { t.Reserved = 20 * time.Millisecond }).newMove("m1")
	m.reserve()
	if got := m.awaitEnded(m.b).GetReason(); got != "host-a has not connected within 20ms" {
		t.Errorf("ended with %q", got)
	}
	m.mustRunAt(m.a)
	// A source that comes too late resumes by itself.
	m.start()
	m.awaitEnded(m.a)
	m.abort()
	m.mustRunAt(m.a)
	m.forget()
}

// TestUnknownToTheLog: nobody else knows of the migration, so nobody can have
// decided anything yet.
func TestUnknownToTheLog(t *testing.T) {
	c := newCluster(t, func(t *Timing) { t.Keep = t.Repeat }) // nobody will tell them to forget it
	m := c.newMove("m1")
	c.log.lose("m1")
	g := m.a.gate("freeze")
	m.reserve()
	m.start()
	g.reach(t) // and its progress is reported meanwhile
	m.a.awaitEmptyJournal()
	m.b.awaitEmptyJournal()
	m.mustRunAt(m.a)
}
