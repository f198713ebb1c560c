package scheduler

import (
	"encoding/json"
	"math"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/pagurus-project/pagurus/migrate"
	migratev1 "github.com/pagurus-project/pagurus/proto/migrate/v1"
)

// heard is all that reports and answers of an agent can be turned into.
type heard struct {
	Progress *migrate.Progress
	Measured []migrate.Measured
	Findings []migrate.Finding
	Tree     []migrate.Process
	Events   []migrate.Event
}

// hearAll reads the same bytes as each of the messages that agents send.
func hearAll(data []byte) (h heard) {
	var report migratev1.ReportRequest
	if proto.Unmarshal(data, &report) == nil {
		switch e := report.GetEvent().(type) {
		case *migratev1.ReportRequest_Progress:
			h.Progress = progress(e.Progress)
			h.Measured = append(h.Measured, migrate.Measured{Rounds: rounds(e.Progress.GetRounds())})
		case *migratev1.ReportRequest_Promised:
			h.Measured = append(h.Measured, measured(e.Promised))
		case *migratev1.ReportRequest_Ended:
			h.Measured = append(h.Measured, measured(e.Ended.GetMeasured()))
			h.Findings = findings(e.Ended.GetBlockers())
		}
	}
	var look migratev1.InspectResponse
	if proto.Unmarshal(data, &look) == nil {
		h.Findings = append(h.Findings, findings(look.GetWarnings())...)
		h.Tree = Processes(look.GetTree(), "host-a")
	}
	var answer migratev1.DecideResponse
	if proto.Unmarshal(data, &answer) == nil {
		if event, err := sourceSettled(&answer); err == nil {
			h.Events = append(h.Events, event)
		}
		h.Events = append(h.Events, running(&answer))
	}
	return h
}

// Whatever an agent says: what is remembered of it is bounded, and can be
// written down as JSON, without which nobody would get a report any more.
func FuzzMessagesOfAgents(f *testing.F) {
	long := strings.Repeat("x", 3*maxText)
	for _, m := range []proto.Message{
		&migratev1.ReportRequest{Event: &migratev1.ReportRequest_Progress{Progress: &migratev1.Progress{
			RateBytes: math.NaN(), DirtyRateBytes: math.Inf(1), EstimateMs: math.Inf(-1), Rounds: []*migratev1.Round{{Ms: math.NaN()}},
		}}},
		&migratev1.ReportRequest{Event: &migratev1.ReportRequest_Promised{Promised: &migratev1.Promised{
			DowntimeMs: math.NaN(), PhasesMs: map[string]float64{"stop": math.Inf(1), long: 1},
		}}},
		&migratev1.ReportRequest{Event: &migratev1.ReportRequest_Ended{Ended: &migratev1.Ended{
			Reason: long, Blockers: []*migratev1.Finding{{Code: long, Detail: long, Hint: long}},
		}}},
		&migratev1.InspectResponse{Tree: []*migratev1.Process{{Pid: -1, Command: long, State: long, Migration: long}}},
		&migratev1.DecideResponse{
			Outcome: migratev1.Outcome_OUTCOME_RESUMED, DowntimeMs: math.NaN(), PhasesMs: map[string]float64{"resume": math.NaN()},
		},
		&migratev1.DecideResponse{Outcome: migratev1.Outcome_OUTCOME_RUNNING, DowntimeMs: math.Inf(1)},
	} {
		data, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		h := hearAll(data)
		text, err := json.Marshal(h)
		if err != nil {
			t.Fatalf("%x: %v", data, err)
		}
		// JSON writes a character as six at most.
		const most = 6 * (maxText + 300)
		if limit := most * (1 + 3*len(h.Findings) + 4*len(h.Tree) + (maxPhases+maxRounds)*(len(h.Measured)+len(h.Events))); len(text) > limit {
			t.Errorf("%x: %d bytes are remembered", data, len(text))
		}
		for _, m := range h.Measured {
			for name := range m.PhasesMS {
				if len(name) > maxText {
					t.Errorf("%x: a phase of %d bytes", data, len(name))
				}
			}
		}
	})
}
