package migrate

import (
	"errors"
	"fmt"
	"reflect"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// TestRecordModel plays migrations against a model of two agents and a leader
// that forgets, with orders that arrive late, twice or never.
func TestRecordModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		t.Repeat(rapid.StateMachineActions(w))
		w.finish(t)
	})
}

// world is what is really there on both hosts, beside the record.
type world struct {
	record Record

	source string // running, frozen, promised, resumed, killed, disposed
	target string // nothing, shell, prepared, ran, never-ran, released, off

	leader Attempt    // lost with each leader
	orders []Decision // sent to the destination, still on their way

	first Decision
}

func newWorld(t *rapid.T) *world {
	w := &world{source: "running", target: "nothing"}
	w.apply(t, Created{ID: "m1", PID: 7, From: "a", To: "b", Options: Options{Rehearse: rapid.Bool().Draw(t, "rehearse")}})
	// Random steps alone seldom get far: begin somewhere on the way.
	for _, step := range []func(){
		func() {
			w.target = "shell"
			w.apply(t, PreflightDone{Epoch: 3, Reserved: true})
			w.leader = Attempt{Epoch: 3}
		},
		func() { w.Freeze(t) },
		func() { w.Prepare(t); w.leader.Prepared = true },
		func() { w.Promise(t) },
		func() { w.leader.Promised = true; w.LeaderProposes(t) },
		func() { w.SendToTarget(t) },
	}[:rapid.SampledFrom([]int{0, 1, 3, 3, 4, 5, 6}).Draw(t, "begin")] {
		if w.record.Options.Rehearse && w.target == "prepared" {
			break
		}
		step()
	}
	return w
}

func (w *world) apply(t *rapid.T, e Event) {
	next, effects, err := w.record.Apply(e)
	if err != nil {
		t.Fatalf("%T: %v", e, err)
	}
	if !reflect.DeepEqual(effects, next.Effects()) {
		t.Fatalf("%T: effects %v are not those of the record, %v", e, effects, next.Effects())
	}
	w.record = next
}

func (w *world) Preflight(t *rapid.T) {
	if w.record.State != StatePending {
		t.Skip("over")
	}
	reserved := rapid.Bool().Draw(t, "reserved")
	e := PreflightDone{Epoch: 3, Reserved: reserved}
	if rapid.IntRange(0, 4).Draw(t, "blockers") == 0 {
		e.Blockers = []Finding{{Code: CodeChildren}}
	} else {
		e.Reserved, reserved = true, true
	}
	if reserved {
		w.target = "shell"
	}
	w.apply(t, e)
	w.leader = Attempt{Epoch: 3}
}

func (w *world) Freeze(t *rapid.T) {
	if w.source != "running" || w.record.Epoch == 0 {
		t.Skip("not running")
	}
	w.source = "frozen"
}

func (w *world) Prepare(t *rapid.T) {
	if w.source != "frozen" || w.target != "shell" {
		t.Skip("not frozen")
	}
	w.target = "prepared"
}

func (w *world) Promise(t *rapid.T) {
	if w.source != "frozen" || w.target != "prepared" || w.record.Options.Rehearse {
		t.Skip("not prepared")
	}
	w.source = "promised"
}

// SourceEnds is its right until it has promised.
func (w *world) SourceEnds(t *rapid.T) {
	if w.record.Epoch == 0 || w.source != "running" && w.source != "frozen" {
		t.Skip("not its to decide")
	}
	if w.source == "frozen" && rapid.Bool().Draw(t, "killed") {
		w.source = "killed"
	} else {
		w.source = "resumed"
	}
}

func (w *world) SourceKilled(t *rapid.T) {
	if w.source != "frozen" && w.source != "promised" {
		t.Skip("not frozen")
	}
	w.source = "killed"
}

// Report takes what the agents have to say to the leader.
func (w *world) Report(t *rapid.T) {
	if w.record.State != StatePrecopy {
		t.Skip("no attempt")
	}
	w.leader.Epoch = w.record.Epoch
	if rapid.Bool().Draw(t, "of source") {
		switch w.source {
		case "promised":
			w.leader.Promised = true
			w.leader.Measured = Measured{DowntimeMS: 4}
		case "resumed":
			w.leader.Ended = &Ended{Reason: "gave up", Rehearsed: w.target == "prepared"}
		}
	} else {
		w.leader.Prepared = w.target == "prepared"
		if w.target == "nothing" {
			w.leader.Gone = "its agent was lost"
		}
	}
}

// TargetLost is the end of the shell before it may run.
func (w *world) TargetLost(t *rapid.T) {
	if w.target != "shell" && w.target != "prepared" || w.record.State == StateCommitted {
		t.Skip("nothing to lose")
	}
	w.target = "nothing"
}

func (w *world) LeaderLost(*rapid.T) { w.leader = Attempt{} }

func (w *world) LeaderProposes(t *rapid.T) {
	d, ok := w.leader.Proposal(w.record)
	if !ok {
		t.Skip("nothing to propose")
	}
	w.apply(t, d)
}

func (w *world) Cancel(t *rapid.T) { w.apply(t, w.leader.Abort("cancelled")) }

func (w *world) SendToTarget(t *rapid.T) {
	if w.record.Decision() == DecisionNone {
		t.Skip("no decision")
	}
	w.orders = append(w.orders, w.record.Decision())
}

// TargetHears takes one order, in any order, perhaps not for the last time;
// its answer is heard or not.
func (w *world) TargetHears(t *rapid.T) {
	if len(w.orders) == 0 || w.target == "off" {
		t.Skip("nothing sent")
	}
	order := w.orders[rapid.IntRange(0, len(w.orders)-1).Draw(t, "which")]
	heard := rapid.Bool().Draw(t, "answer heard")
	w.targetHears(t, order, rapid.Bool().Draw(t, "can resume"), heard)
}

func (w *world) targetHears(t *rapid.T, order Decision, able, heard bool) {
	if order == DecisionCommit {
		switch {
		case w.target == "prepared" && able:
			w.target = "ran"
		case w.target == "prepared":
			w.target = "never-ran"
		}
		if !heard || w.record.State != StateCommitted {
			return
		}
		if w.target == "ran" {
			w.apply(t, Running{DowntimeMS: 2})
		} else {
			w.apply(t, NeverRan{Reason: "could not"})
		}
		return
	}
	if w.target != "never-ran" {
		w.target = "released"
	}
	if heard {
		w.apply(t, TargetSettled{Outcome: OutcomeReleased})
	}
}

func (w *world) SourceHears(t *rapid.T) {
	switch {
	case w.record.Decision() == DecisionAbort:
		if w.source != "killed" {
			w.source = "resumed"
		}
		if rapid.Bool().Draw(t, "answer heard") {
			w.sourceAnswers(t)
		}
	case w.record.State == StateCommitted && w.record.Target == OutcomeRunning:
		w.source = "disposed"
		if rapid.Bool().Draw(t, "answer heard") {
			w.sourceAnswers(t)
		}
	default:
		t.Skip("nothing to tell")
	}
}

func (w *world) sourceAnswers(t *rapid.T) {
	outcome := map[string]Outcome{"resumed": OutcomeResumed, "killed": OutcomeKilled, "disposed": OutcomeDisposed}[w.source]
	w.apply(t, SourceSettled{Outcome: outcome, DowntimeMS: 9})
}

// Fence is an operator's word that the host is off, and it is.
func (w *world) Fence(t *rapid.T) {
	if w.record.State != StateCommitted || w.record.Target != OutcomeOpen || w.target == "ran" {
		t.Skip("nothing to fence")
	}
	w.target = "off"
	w.apply(t, Fenced{By: "anna"})
}

// Check holds after every action.
func (w *world) Check(t *rapid.T) {
	committed := w.record.State == StateCommitted || w.record.State == StateDone
	ordered := false // COMMIT may still reach the destination
	for _, o := range w.orders {
		ordered = ordered || o == DecisionCommit
	}
	targetMay := w.target == "ran" || w.target == "prepared" && (committed || ordered)
	sourceMay := w.source == "running" || w.source == "frozen" || w.source == "resumed" ||
		w.source == "promised" && w.record.Decision() == DecisionAbort
	if targetMay && sourceMay {
		t.Fatalf("both may run: source %s, target %s, record %s", w.source, w.target, describe(w.record))
	}
	d := w.record.Decision()
	if w.first == DecisionNone {
		w.first = d
	}
	if d != w.first && w.record.State != StateReverted {
		t.Fatalf("decision %s became %s", w.first, d)
	}
	if w.record.State == StateDone && (w.source != "disposed" || w.target != "ran") {
		t.Fatalf("DONE with source %s, target %s", w.source, w.target)
	}
	if w.record.State == StateRehearsed && !w.record.Options.Rehearse {
		t.Fatal("REHEARSED without having been asked to")
	}
}

// finish lets everybody answer: the record must settle, with one copy running
// or with the word that it was killed.
func (w *world) finish(t *rapid.T) {
	for range 10 {
		for _, e := range w.record.Effects() {
			switch e.Kind {
			case EffectPreflight, EffectStart:
				w.apply(t, w.leader.Abort("timed out"))
			case EffectDecide:
				if e.Side == SideTarget {
					w.targetHears(t, w.record.Decision(), true, true)
					break
				}
				if w.source != "killed" {
					w.source = "resumed"
				}
				w.sourceAnswers(t)
			case EffectDispose:
				w.source = "disposed"
				w.sourceAnswers(t)
			case EffectForget:
				w.apply(t, Forgotten{})
			}
			w.Check(t)
		}
	}
	if !w.record.Settled() || len(w.record.Effects()) != 0 {
		t.Fatalf("not settled: %s, still to do: %v", describe(w.record), w.record.Effects())
	}
	sourceRuns := w.source == "resumed" || w.source == "running"
	if targetRuns := w.target == "ran"; sourceRuns == targetRuns && w.source != "killed" {
		t.Fatalf("source %s, target %s in %s", w.source, w.target, describe(w.record))
	}
}

// TestRecordTakesAnything applies arbitrary events, most of them nonsense: no
// panic, an error leaves the record as it was, what is given is not written to,
// and what is decided stays.
func TestRecordTakesAnything(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ledger := NewLedger(2)
		for _, event := range []Event{
			Created{ID: "m1", Key: "k", PID: 1, From: "a", To: "b"},
			PreflightDone{Epoch: 1, PhasesMS: map[string]float64{"preflight": 1}},
			Decided{Decision: DecisionCommit, Prepared: 1, Promised: 1, Measured: Measured{PhasesMS: map[string]float64{"stop": 1}}},
			Running{PhasesMS: map[string]float64{"resume": 1}},
		}[:rapid.IntRange(0, 4).Draw(t, "begin")] {
			if _, _, err := ledger.Apply("m1", event); err != nil {
				t.Fatal(err)
			}
		}
		for range rapid.IntRange(1, 30).Draw(t, "events") {
			id := rapid.SampledFrom([]string{"", "m1", "m2", "m3", "m4"}).Draw(t, "id")
			event := anyEvent(t)
			if created, ok := event.(Created); ok {
				id = created.ID
			}
			before, known := ledger.Record(id)
			copied := cmp.Diff(Record{}, before) // as text: what it was
			after, _, err := ledger.Apply(id, event)
			if err != nil && (!errors.Is(err, ErrOutOfPlace) || cmp.Diff(before, after) != "") {
				t.Fatalf("%T: error %v with change %s", event, err, cmp.Diff(before, after))
			}
			if known && cmp.Diff(Record{}, before) != copied {
				t.Fatalf("%T wrote to the record it was given", event)
			}
			if known && after.ID == before.ID {
				checkStep(t, event, before, after)
			}
			_ = after.Report()
		}
		settled := 0
		for _, r := range ledger.Records() {
			if r.Settled() {
				settled++
			}
		}
		if settled > 2 {
			t.Fatalf("%d settled records are kept instead of 2", settled)
		}
	})
}

func checkStep(t *rapid.T, e Event, before, after Record) {
	was, is := before.Decision(), after.Decision()
	reverted := before.State == StateCommitted && after.State == StateReverted
	switch {
	case was != DecisionNone && is != was && !reverted:
		t.Fatalf("%T: decision %s became %s", e, was, is)
	case before.Target == OutcomeRunning && after.Target != OutcomeRunning:
		t.Fatalf("%T: what ran became %s", e, after.Target)
	case before.Source != OutcomeOpen && after.Source != before.Source:
		t.Fatalf("%T: source %s became %s", e, before.Source, after.Source)
	case before.State.Final() && after.State != before.State:
		t.Fatalf("%T: %s became %s", e, before.State, after.State)
	case is == DecisionCommit && after.Epoch == 0:
		t.Fatalf("%T: COMMIT without an attempt", e)
	}
}

func anyEvent(t *rapid.T) Event {
	outcome := rapid.SampledFrom([]Outcome{
		OutcomeOpen, OutcomeUntouched, OutcomeUnknown, OutcomeResumed, OutcomeKilled, OutcomeEnded, OutcomeDisposed,
		OutcomeRunning, OutcomeReleased, OutcomeNeverRan, OutcomeFenced, "nonsense",
	}).Draw(t, "outcome")
	epoch := func(name string) uint64 { return rapid.Uint64Range(0, 2).Draw(t, name) }
	findings := make([]Finding, rapid.IntRange(0, 1).Draw(t, "findings"))
	at := time.Unix(int64(rapid.IntRange(0, 5).Draw(t, "at")), 0)
	switch rapid.IntRange(0, 8).Draw(t, "kind") {
	case 0:
		return Created{
			ID: fmt.Sprintf("m%d", rapid.IntRange(1, 4).Draw(t, "new")), PID: rapid.IntRange(1, 2).Draw(t, "pid"), From: "a", To: "b",
			Key: rapid.SampledFrom([]string{"", "k"}).Draw(t, "key"), Blockers: findings, At: at,
		}
	case 1:
		return PreflightDone{Epoch: epoch("epoch"), Blockers: findings, PhasesMS: map[string]float64{"preflight": 1}, At: at}
	case 2:
		return Decided{
			Decision: rapid.SampledFrom([]Decision{DecisionNone, DecisionCommit, DecisionAbort, "?"}).Draw(t, "decision"),
			Prepared: epoch("prepared"), Promised: epoch("promised"), Blockers: findings,
			Measured: Measured{PhasesMS: map[string]float64{"stop": 1}}, Source: outcome, At: at,
		}
	case 3:
		return Running{DowntimeMS: 1, PhasesMS: map[string]float64{"stop": 1}}
	case 4:
		return NeverRan{At: at}
	case 5:
		return Fenced{At: at}
	case 6:
		return SourceSettled{Outcome: outcome, PhasesMS: map[string]float64{"stop": 2}, At: at}
	case 7:
		return TargetSettled{Outcome: outcome}
	}
	return Forgotten{}
}

func TestAttemptOverlay(t *testing.T) {
	progress := &Progress{Round: 2}
	measured := Measured{Rounds: []Round{{N: 0}}, Bytes: 10, WireBytes: 5}
	for _, tt := range []struct {
		name    string
		record  Record
		attempt Attempt
		want    State
		reason  string
		live    bool // progress is shown
	}{
		{"waiting for its turn", Record{State: StatePending}, Attempt{}, StatePending, "", true},
		{"looking", Record{State: StatePending}, Attempt{Preflight: true}, StatePreflight, "", true},
		{"copying", Record{State: StatePrecopy}, Attempt{}, StatePrecopy, "", true},
		{"frozen", Record{State: StatePrecopy}, Attempt{Frozen: true}, StateFrozen, "", true},
		{"promise heard first", Record{State: StatePrecopy}, Attempt{Promised: true}, StateFrozen, "", true},
		{"prepared", Record{State: StatePrecopy}, Attempt{Frozen: true, Prepared: true}, StatePrepared, "", true},
		{
			"the log knows better",
			Record{State: StateCommitted},
			Attempt{Frozen: true, Prepared: true, Waiting: "host-b does not answer"},
			StateCommitted, "host-b does not answer", true,
		},
		{
			"the log's reason stays",
			Record{State: StateAborted, Reason: "cancelled"},
			Attempt{Waiting: "host-b does not answer"},
			StateAborted, "cancelled", false,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.attempt.Progress, tt.attempt.Measured = progress, measured
			got := tt.attempt.Overlay(tt.record.Report())
			if got.State != tt.want || got.Reason != tt.reason || (got.Progress != nil) != tt.live || (len(got.Rounds) > 0) != tt.live {
				t.Errorf("got %+v", got)
			}
		})
	}
}
