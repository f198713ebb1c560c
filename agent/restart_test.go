package agent

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/pagurus-project/pagurus/migrate"
	migratev1 "github.com/pagurus-project/pagurus/proto/migrate/v1"
)

// TestSourceRestarts kills the source's agent wherever it can stand, and
// starts another one.
func TestSourceRestarts(t *testing.T) {
	for _, at := range []string{"start", "freeze", "send", "promise"} {
		t.Run("before "+at, func(t *testing.T) {
			m := newCluster(t).newMove("m1")
			g := m.a.gate(at)
			m.reserve()
			m.start()
			g.reach(t)
			m.a.kill()
			m.a.start()
			if got := m.awaitEnded(m.a).GetReason(); got != "the agent on the source was lost" {
				t.Errorf("ended with %q", got)
			}
			m.a.must(map[int]string{pid: "running"})
			// It is known here, so the leader need not suspect anything.
			if _, err := m.a.orders.Start(t.Context(), &migratev1.StartRequest{Ref: m.ref}); err != nil {
				t.Error(err)
			}
			m.abort()
			m.mustRunAt(m.a)
			m.forget()
		})
	}
	for _, decision := range []migratev1.Decision{
		migratev1.Decision_DECISION_COMMIT, migratev1.Decision_DECISION_ABORT, migratev1.Decision_DECISION_UNSPECIFIED,
	} {
		t.Run("promised, "+decision.String(), func(t *testing.T) {
			m := newCluster(t).newMove("m1")
			m.reserve()
			m.start()
			m.awaitPromised()
			m.awaitPrepared()
			m.a.kill()
			m.log.hold("m1", decision)
			before := m.log.count()
			m.a.start()
			switch decision {
			case migratev1.Decision_DECISION_COMMIT:
				m.log.awaitQuestions(t, 1)
				m.a.must(map[int]string{pid: "frozen"})
				m.commit()
				m.dispose()
				m.mustRunAt(m.b)
			case migratev1.Decision_DECISION_ABORT:
				m.abort()
				m.mustRunAt(m.a)
			default:
				// It promises again, with what the first agent has measured.
				again := m.log.await(t, before, "a promise", func(r *migratev1.ReportRequest) bool { return r.GetPromised() != nil })
				if again.GetPromised().GetBytes() != measuredByFake.Bytes {
					t.Errorf("promised %v", again)
				}
				m.commit()
				m.dispose()
				m.mustRunAt(m.b)
			}
			m.forget()
		})
	}
	t.Run("promised, and the engine cannot recover at first", func(t *testing.T) {
		m := newCluster(t).newMove("m1")
		m.reserve()
		m.start()
		m.awaitPromised()
		m.a.kill()
		m.a.failing["recover"], m.a.failing["resume"] = 2, 2
		m.log.hold("m1", migratev1.Decision_DECISION_ABORT)
		m.a.start()
		m.abort()
		m.mustRunAt(m.a)
		m.forget()
	})
	t.Run("promised, and no coordinator answers", func(t *testing.T) {
		m := newCluster(t).newMove("m1")
		m.reserve()
		m.start()
		m.awaitPromised()
		m.a.kill()
		m.log.setDown(true)
		m.a.start()
		m.log.awaitQuestions(t, 3)
		m.a.must(map[int]string{pid: "frozen"})
		m.log.hold("m1", migratev1.Decision_DECISION_ABORT)
		m.log.setDown(false)
		m.abort()
		m.mustRunAt(m.a)
		m.forget()
	})
	t.Run("promised, and the log has lost it", func(t *testing.T) {
		m := newCluster(t).newMove("m1")
		m.reserve()
		m.start()
		m.awaitPromised()
		m.a.kill()
		m.log.lose("m1")
		m.a.start()
		m.log.awaitQuestions(t, 3)
		m.a.must(map[int]string{pid: "frozen"})
	})
	t.Run("resuming", func(t *testing.T) {
		m := newCluster(t).newMove("m1")
		g := m.a.gate("resume")
		m.reserve()
		m.start()
		m.awaitPromised()
		m.log.hold("m1", migratev1.Decision_DECISION_ABORT)
		g.reach(t)
		m.a.killAt(g)
		m.a.must(map[int]string{pid: "frozen"})
		m.a.start()
		m.abort()
		m.mustRunAt(m.a)
		m.forget()
	})
	t.Run("disposing", func(t *testing.T) {
		m := newCluster(t).newMove("m1")
		m.reserve()
		m.start()
		m.awaitPromised()
		m.commit()
		g := m.a.gate("dispose")
		disposed := make(chan error)
		go func() {
			_, err := m.a.orders.Dispose(t.Context(), &migratev1.DisposeRequest{Ref: m.ref})
			disposed <- err
		}()
		g.reach(t)
		m.log.hold("m1", migratev1.Decision_DECISION_COMMIT)
		m.a.killAt(g)
		if err := <-disposed; err == nil {
			t.Error("a killed agent has answered")
		}
		m.a.must(map[int]string{pid: "frozen"})
		m.a.start()
		m.dispose()
		m.mustRunAt(m.b)
		m.forget()
	})
	t.Run("over", func(t *testing.T) {
		m := newCluster(t).newMove("m1")
		m.a.failing["send"] = 1
		m.log.setDown(true) // the end is not heard of
		m.reserve()
		m.start()
		m.awaitEnded(m.a)
		m.a.kill()
		before := m.log.count()
		m.log.setDown(false)
		m.a.start()
		again := m.log.await(t, before, "its end", func(r *migratev1.ReportRequest) bool {
			return r.GetHost() == "host-a" && r.GetEnded() != nil
		}).GetEnded()
		if again.GetReason() != "send fails" || again.GetMeasured().GetDowntimeMs() != 9 {
			t.Errorf("ended with %v", again)
		}
		m.abort()
		m.mustRunAt(m.a)
		m.forget()
	})
}

// TestTargetRestarts kills the destination's agent wherever it can stand, and
// starts another one.
func TestTargetRestarts(t *testing.T) {
	t.Run("reserved", func(t *testing.T) {
		m := newCluster(t).newMove("m1")
		m.reserve()
		m.b.kill()
		m.b.start()
		if got := m.awaitEnded(m.b).GetReason(); got != "the agent on the destination was lost" {
			t.Errorf("ended with %q", got)
		}
		m.mustRunAt(m.a)
		m.decide(m.b, migratev1.Decision_DECISION_ABORT, migratev1.Outcome_OUTCOME_RELEASED)
		m.forget()
	})
	t.Run("receiving", func(t *testing.T) {
		m := newCluster(t).newMove("m1")
		g := m.b.gate("prepare")
		m.reserve()
		m.start()
		g.reach(t)
		m.b.kill()
		m.awaitEnded(m.a) // the connection was lost
		m.b.start()
		m.awaitEnded(m.b)
		m.mustRunAt(m.a)
		m.abort()
		m.forget()
	})
	for _, decision := range []migratev1.Decision{
		migratev1.Decision_DECISION_COMMIT, migratev1.Decision_DECISION_ABORT, migratev1.Decision_DECISION_UNSPECIFIED,
	} {
		t.Run("prepared, "+decision.String(), func(t *testing.T) {
			m := newCluster(t).newMove("m1")
			m.reserve()
			m.start()
			m.awaitPromised()
			m.awaitPrepared()
			m.b.kill()
			m.log.hold("m1", decision)
			m.b.failing["recover"] = 2
			before := m.log.count()
			m.b.start()
			switch decision {
			case migratev1.Decision_DECISION_ABORT:
				m.abort()
				m.mustRunAt(m.a)
			case migratev1.Decision_DECISION_UNSPECIFIED:
				m.log.await(t, before, "that it is prepared", func(r *migratev1.ReportRequest) bool { return r.GetPrepared() != nil })
				m.b.must(map[int]string{pid: "shell"})
				fallthrough
			default:
				m.commit()
				m.dispose()
				m.mustRunAt(m.b)
			}
			m.forget()
		})
	}
	t.Run("prepared, and the shell was killed", func(t *testing.T) {
		m := newCluster(t).newMove("m1")
		m.reserve()
		m.start()
		m.awaitPromised()
		m.awaitPrepared()
		m.b.kill()
		if err := m.b.turn(pid, "", "shell"); err != nil {
			t.Fatal(err)
		}
		m.b.start()
		m.decide(m.b, migratev1.Decision_DECISION_COMMIT, migratev1.Outcome_OUTCOME_NEVER_RAN)
	})
	t.Run("prepared, and no coordinator answers", func(t *testing.T) {
		m := newCluster(t).newMove("m1")
		m.reserve()
		m.start()
		m.awaitPromised()
		m.awaitPrepared()
		m.b.kill()
		m.log.setDown(true)
		m.b.start()
		m.log.awaitQuestions(t, 3)
		m.b.must(map[int]string{pid: "shell"})
	})
	t.Run("committing", func(t *testing.T) {
		for _, exited := range []bool{false, true} {
			m := newCluster(t).newMove("m1")
			g := m.b.gate("ran")
			m.reserve()
			m.start()
			m.awaitPromised()
			m.awaitPrepared()
			m.log.hold("m1", migratev1.Decision_DECISION_COMMIT)
			g.reach(t)
			m.b.killAt(g)
			if exited { // meanwhile, having run
				if err := m.b.turn(pid, "", "running"); err != nil {
					t.Fatal(err)
				}
			}
			m.b.start()
			m.commit()
			m.dispose()
		}
	})
	t.Run("running", func(t *testing.T) {
		m := newCluster(t).newMove("m1")
		m.reserve()
		m.start()
		m.awaitPromised()
		first := m.commit()
		m.b.kill()
		m.b.must(map[int]string{pid: "running"})
		m.b.start()
		if again := m.commit(); again.GetDowntimeMs() != first.GetDowntimeMs() {
			t.Errorf("answers %v after %v", again, first)
		}
		m.dispose()
		m.mustRunAt(m.b)
		m.forget()
	})
}

// TestShutdown stops an agent in each state, as an upgrade does.
func TestShutdown(t *testing.T) {
	t.Run("source, before the promise", func(t *testing.T) {
		t.Parallel() // most of it is waiting for gossip
		for _, at := range []string{"freeze", "send"} {
			m := newCluster(t).newMove("m1")
			g := m.a.gate(at)
			m.reserve()
			m.start()
			g.reach(t)
			m.a.stop()
			if got := m.awaitEnded(m.a).GetReason(); got != errStopping.Error() {
				t.Errorf("ended with %q", got)
			}
			m.awaitEnded(m.b)
			m.mustRunAt(m.a)
			m.a.start()
			m.abort()
			m.forget()
		}
	})
	t.Run("source, promised", func(t *testing.T) {
		t.Parallel() // most of it is waiting for gossip
		m := newCluster(t).newMove("m1")
		m.reserve()
		m.start()
		m.awaitPromised()
		m.awaitPrepared()
		m.a.stop()
		m.a.must(map[int]string{pid: "frozen"})
		m.commit()
		m.a.start()
		m.dispose()
		m.mustRunAt(m.b)
		m.forget()
	})
	t.Run("source, promised, and decided on meanwhile", func(t *testing.T) {
		t.Parallel() // most of it is waiting for gossip
		m := newCluster(t, func(t *Timing) { t.Decided = time.Minute }).newMove("m1")
		m.reserve()
		m.start()
		m.awaitPromised()
		m.awaitPrepared()
		agent, stopped := m.a.agent, make(chan error)
		go func() { stopped <- agent.Shutdown(t.Context()) }()
		<-agent.stopping.Done()
		m.commit()
		m.dispose()
		m.mustRunAt(m.b)
		if err := <-stopped; err != nil {
			t.Error(err)
		}
		m.a.conn.Close()
		m.a.agent = nil
	})
	t.Run("destination, before it is prepared", func(t *testing.T) {
		t.Parallel() // most of it is waiting for gossip
		for _, connected := range []bool{false, true} {
			m := newCluster(t).newMove("m1")
			m.reserve()
			if connected {
				g := m.b.gate("prepare")
				m.start()
				g.reach(t)
			}
			m.b.stop()
			m.awaitEnded(m.b)
			if connected {
				m.awaitEnded(m.a)
			}
			m.mustRunAt(m.a)
		}
	})
	t.Run("destination, prepared", func(t *testing.T) {
		t.Parallel() // most of it is waiting for gossip
		m := newCluster(t).newMove("m1")
		m.reserve()
		m.start()
		m.awaitPromised()
		m.awaitPrepared()
		m.b.stop()
		m.b.must(map[int]string{pid: "shell"})
		m.b.start()
		m.commit()
		m.dispose()
		m.mustRunAt(m.b)
		m.forget()
	})
	t.Run("destination, running", func(t *testing.T) {
		t.Parallel() // most of it is waiting for gossip
		m := newCluster(t).newMove("m1")
		m.reserve()
		m.start()
		m.awaitPromised()
		m.commit()
		m.b.stop()
		m.b.must(map[int]string{pid: "running"})
		m.b.start()
		m.commit()
		m.dispose()
		m.mustRunAt(m.b)
		m.forget()
	})
	t.Run("no coordinator", func(t *testing.T) {
		t.Parallel() // most of it is waiting for gossip
		m := newCluster(t, func(t *Timing) { t.Report /= 10 }).newMove("m1")
		g := m.a.gate("send")
		m.reserve()
		m.start()
		g.reach(t)
		m.log.setDown(true)
		m.a.stop() // within its patience
		m.a.must(map[int]string{pid: "running"})
	})
}

func TestJournal(t *testing.T) {
	dir := t.TempDir()
	j, err := openJournal(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer j.close()
	if _, err := openJournal(dir); err == nil || !strings.Contains(err.Error(), "another agent has its journal in "+dir) {
		t.Errorf("a second agent gets %v", err)
	}
	write := func(name, content string) string {
		t.Helper()
		path := filepath.Join(dir, "migrations", name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	mine := entry{Migration: "m1", Epoch: 3, Side: migrate.SideSource, PIDs: []int{7}, Phase: phaseRunning, Plan: json.RawMessage(`{"a":1}`)}
	if err := j.write(&mine); err != nil {
		t.Fatal(err)
	}
	write("m2-source.json.new", `{"half`)
	write("m3-target.json", `{"version":1,"boot":"another","migration":"m3","side":"target","phase":"prepared"}`)
	entries, err := j.read()
	if err != nil || len(entries) != 1 || entries[0].Migration != "m1" || string(entries[0].Plan) != `{"a":1}` || entries[0].Phase != phaseRunning {
		t.Errorf("read %+v, %v", entries, err)
	}
	if err := j.remove(&mine); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(filepath.Join(dir, "migrations")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	// Behind what cannot be read there may be a frozen process.
	for _, bad := range []string{
		`{`,
		`{"version":2,"boot":"` + j.boot + `","migration":"m4","side":"source","phase":"promised"}`,
		`{"version":1,"boot":"` + j.boot + `","migration":"m5","side":"source","phase":"promised"}`,
		`{"version":1,"boot":"` + j.boot + `","migration":"m4","side":"source","phase":"prepared"}`,
		`{"version":1,"boot":"` + j.boot + `","migration":"../m4","side":"source","phase":"promised"}`,
	} {
		path := write("m4-source.json", bad)
		if entries, err := j.read(); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s is read as %+v, %v", bad, entries, err)
		}
	}
}

// TestForgottenByAll: the log has ended a migration without ever telling this
// host, so that what it remembers goes after a while.
func TestForgottenByAll(t *testing.T) {
	m := newCluster(t, func(t *Timing) { t.Keep = t.Repeat }).newMove("m1")
	m.a.failing["send"] = 1
	m.reserve()
	m.start()
	m.awaitEnded(m.a)
	m.awaitEnded(m.b)
	m.log.hold("m1", migratev1.Decision_DECISION_ABORT)
	for _, h := range []*host{m.a, m.b} {
		h.awaitEmptyJournal()
		_, err := h.orders.Forget(t.Context(), &migratev1.ForgetRequest{Ref: m.ref})
		mustCode(t, err, codes.NotFound)
	}
	m.mustRunAt(m.a)
}

// TestCloseIsNoShutdown: no session ever sees an agent that was killed as one
// that is to stop in good order, and gives up on that.
func TestCloseIsNoShutdown(t *testing.T) {
	c := newCluster(t)
	agent := c.a.agent
	stop := agent.stop
	agent.stop = func() {
		if agent.alive.Err() == nil {
			t.Error("told to stop before it is dead")
		}
		stop()
	}
	c.a.kill()
}
