package migrate

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
)

// TestRecord runs the scripts of testdata/record. Run it with -rewrite to
// write down what happens now. Commands:
//
//	create ID pid=7 from=a to=b [key=K] [rehearse] [blocker=CODE]
//	preflight ID epoch=3 [blocker=CODE] [warning=CODE] [reserved]
//	decide ID commit|abort [reason=WORD] [prepared=3] [promised=3] [source=resumed] [rehearsed] [ms=1.5]
//	running ID ms=2.5 | never-ran ID | fenced ID by=anna
//	source ID OUTCOME [ms=7] | target ID OUTCOME | forgotten ID
//	show ID            the report as JSON
//	list               state of all records
//
// Each event happens one second after the one before.
func TestRecord(t *testing.T) {
	datadriven.Walk(t, "testdata/record", func(t *testing.T, path string) {
		s := &script{ledger: NewLedger(3), now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
		datadriven.RunTest(t, path, s.run)
	})
}

type script struct {
	ledger *Ledger
	now    time.Time
}

func (s *script) run(t *testing.T, d *datadriven.TestData) string {
	var id string
	if len(d.CmdArgs) > 0 {
		id = d.CmdArgs[0].Key
	}
	switch d.Cmd {
	case "show":
		r, _ := s.ledger.Record(id)
		out, err := json.MarshalIndent(r.Report(), "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	case "list":
		var b strings.Builder
		for _, r := range s.ledger.Records() {
			fmt.Fprintln(&b, r.ID, describe(r))
		}
		return b.String()
	}
	s.now = s.now.Add(time.Second)
	r, effects, err := s.ledger.Apply(id, s.event(t, d, id))
	var b strings.Builder
	if r.ID != id {
		fmt.Fprintf(&b, "%s: ", r.ID)
	}
	fmt.Fprintln(&b, describe(r))
	if err != nil {
		fmt.Fprintln(&b, "error:", err)
		if !errors.Is(err, ErrOutOfPlace) {
			t.Errorf("%v is not ErrOutOfPlace", err)
		}
	}
	for _, e := range effects {
		fmt.Fprintln(&b, "do:", e.Kind, e.Side)
	}
	return b.String()
}

func (s *script) event(t *testing.T, d *datadriven.TestData, id string) Event {
	var (
		pid                       int
		from, to, key, by, reason string
		epoch, prepared, promised uint64
		ms                        float64
		source, blocker, warning  string
	)
	d.MaybeScanArgs(t, "pid", &pid)
	d.MaybeScanArgs(t, "from", &from)
	d.MaybeScanArgs(t, "to", &to)
	d.MaybeScanArgs(t, "key", &key)
	d.MaybeScanArgs(t, "by", &by)
	d.MaybeScanArgs(t, "reason", &reason)
	d.MaybeScanArgs(t, "epoch", &epoch)
	d.MaybeScanArgs(t, "prepared", &prepared)
	d.MaybeScanArgs(t, "promised", &promised)
	d.MaybeScanArgs(t, "source", &source)
	d.MaybeScanArgs(t, "blocker", &blocker)
	d.MaybeScanArgs(t, "warning", &warning)
	if arg, ok := d.Arg("ms"); ok {
		if _, err := fmt.Sscan(arg.SingleVal(t), &ms); err != nil {
			d.Fatalf(t, "ms: %v", err)
		}
	}
	finding := func(code string) []Finding {
		if code == "" {
			return nil
		}
		return []Finding{{Code: Code(code), Detail: "detail"}}
	}
	switch d.Cmd {
	case "create":
		return Created{
			ID: id, Key: key, PID: pid, From: from, To: to,
			Options: Options{Rehearse: d.HasArg("rehearse")}, Blockers: finding(blocker), At: s.now,
		}
	case "preflight":
		return PreflightDone{
			Epoch: epoch, Command: "sleep 1", Blockers: finding(blocker), Warnings: finding(warning),
			PhasesMS: map[string]float64{PhasePreflight: 20}, Reserved: d.HasArg("reserved"), At: s.now,
		}
	case "decide":
		e := Decided{
			Reason: reason, Prepared: prepared, Promised: promised, Source: Outcome(source),
			Blockers: finding(blocker), Rehearsed: d.HasArg("rehearsed"), At: s.now,
			Decision: Decision(strings.ToUpper(d.CmdArgs[1].Key)),
		}
		if ms != 0 {
			e.Measured = Measured{
				DowntimeMS: ms, Bytes: 8192, WireBytes: 100, Rounds: []Round{{N: 0, Pages: 2}},
				PhasesMS: map[string]float64{PhasePrecopy: 100, PhaseStop: 1, PhaseTransfer: 0.5},
			}
		}
		return e
	case "running":
		return Running{DowntimeMS: ms, PhasesMS: map[string]float64{PhaseTransfer: 0.25, PhaseRestore: 2}}
	case "never-ran":
		return NeverRan{Reason: "detach failed", At: s.now}
	case "fenced":
		return Fenced{By: by, At: s.now}
	case "source":
		return SourceSettled{Outcome: Outcome(d.CmdArgs[1].Key), DowntimeMS: ms, At: s.now}
	case "target":
		return TargetSettled{Outcome: Outcome(d.CmdArgs[1].Key)}
	case "forgotten":
		return Forgotten{}
	case "nothing":
		return nil
	}
	d.Fatalf(t, "unknown command %s", d.Cmd)
	return nil
}

func describe(r Record) string {
	s := string(r.State)
	if s == "" {
		s = "no record"
	}
	if r.Settled() {
		s += " settled"
	}
	if d := r.Decision(); d != DecisionNone {
		s += fmt.Sprintf(" decision=%s source=%s target=%s", d, orDash(r.Source), orDash(r.Target))
	}
	if r.Reason != "" {
		s += fmt.Sprintf(" reason=%q", r.Reason)
	}
	for _, b := range r.Blockers {
		s += fmt.Sprintf(" blocker=%s", b.Code)
	}
	if m := r.Measured.DowntimeMS; m != 0 {
		s += fmt.Sprintf(" downtime=%gms", m)
	}
	return s
}

func orDash(o Outcome) Outcome {
	if o == OutcomeOpen {
		return "-"
	}
	return o
}

// Whoever reads a report learns whether there is still a process.
func TestReportEnded(t *testing.T) {
	for outcome, want := range map[Outcome]bool{OutcomeKilled: true, OutcomeEnded: true, OutcomeResumed: false, OutcomeUntouched: false, OutcomeDisposed: false} {
		if got := (Record{State: StateAborted, Source: outcome}).Report().Ended; got != want {
			t.Errorf("%s: %v", outcome, got)
		}
	}
}
