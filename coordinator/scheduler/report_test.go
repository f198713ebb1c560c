package scheduler_test

import (
	"errors"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pagurus-project/pagurus/coordinator/clustertest/agenttest"
	"github.com/pagurus-project/pagurus/coordinator/scheduler"
	"github.com/pagurus-project/pagurus/migrate"
	migratev1 "github.com/pagurus-project/pagurus/proto/migrate/v1"
)

func TestReportRefuses(t *testing.T) {
	run(t, func(t *testing.T, x *fixture) {
		hold := make(chan struct{})
		x.once("host-a", agenttest.Freeze, func() { <-hold })
		id := x.create(migrate.Options{})
		r := x.await(id, func(r migrate.Report) bool { return r.Progress != nil && r.Progress.Round == 1 })
		promised := &migratev1.ReportRequest_Promised{Promised: &migratev1.Promised{}}
		prepared := &migratev1.ReportRequest_Prepared{Prepared: &migratev1.Prepared{}}
		for _, tt := range []struct {
			name string
			req  *migratev1.ReportRequest
			want codes.Code
		}{
			{"another host", &migratev1.ReportRequest{Ref: &migratev1.Ref{Migration: id, Epoch: r.Epoch}, Host: "host-c"}, codes.PermissionDenied},
			{"unknown", &migratev1.ReportRequest{Ref: &migratev1.Ref{Migration: "m9", Epoch: 3}, Host: "host-a"}, codes.NotFound},
			{"nothing", &migratev1.ReportRequest{Ref: &migratev1.Ref{Migration: id, Epoch: r.Epoch}, Host: "host-a"}, codes.InvalidArgument},
			{"not its to promise", &migratev1.ReportRequest{Ref: &migratev1.Ref{Migration: id, Epoch: r.Epoch}, Host: "host-b", Event: promised}, codes.InvalidArgument},
			{"not its to prepare", &migratev1.ReportRequest{Ref: &migratev1.Ref{Migration: id, Epoch: r.Epoch}, Host: "host-a", Event: prepared}, codes.InvalidArgument},
			{"epoch to come", &migratev1.ReportRequest{Ref: &migratev1.Ref{Migration: id, Epoch: r.Epoch + 1}, Host: "host-a", Event: promised}, codes.FailedPrecondition},
		} {
			if _, err := x.s.Report(t.Context(), tt.req); status.Code(err) != tt.want {
				t.Errorf("%s: %v", tt.name, err)
			}
		}
		// An attempt that was overtaken learns that it is over, and both words
		// of it do not make a COMMIT.
		for host, event := range map[string]*migratev1.ReportRequest{"host-a": {Event: promised}, "host-b": {Event: prepared}} {
			event.Ref, event.Host = &migratev1.Ref{Migration: id, Epoch: r.Epoch - 1}, host
			resp, err := x.s.Report(t.Context(), event)
			if err != nil || resp.GetDecision() != migratev1.Decision_DECISION_ABORT {
				t.Errorf("%s of an old epoch: %v, %v", host, resp, err)
			}
		}
		decision := func(epoch uint64) *migratev1.DecisionResponse {
			resp, err := x.s.Decision(t.Context(), &migratev1.DecisionRequest{Ref: &migratev1.Ref{Migration: id, Epoch: epoch}, Host: "host-a"})
			if err != nil {
				t.Fatal(err)
			}
			return resp
		}
		if d := decision(r.Epoch); !d.GetKnown() || d.GetDecision() != 0 || d.GetState() != "PRECOPY" || d.GetEpoch() != r.Epoch {
			t.Errorf("decision: %v", d)
		}
		close(hold)
		x.settle(id, migrate.StateDone)
		if d := decision(r.Epoch); d.GetDecision() != migratev1.Decision_DECISION_COMMIT {
			t.Errorf("decision: %v", d)
		}
		unknown, err := x.s.Decision(t.Context(), &migratev1.DecisionRequest{Ref: &migratev1.Ref{Migration: "m9"}, Host: "host-a"})
		if err != nil || unknown.GetKnown() {
			t.Errorf("decision on nothing: %v, %v", unknown, err)
		}
		x.loseLeadership()
		defer x.lead()
		if _, err := x.s.Report(t.Context(), &migratev1.ReportRequest{Ref: &migratev1.Ref{Migration: id}}); status.Code(err) != codes.Unavailable {
			t.Errorf("report to one who does not lead: %v", err)
		}
		if _, err := x.s.Create(t.Context(), scheduler.Move{}); !errors.Is(err, scheduler.ErrNotLeading) {
			t.Errorf("create at one who does not lead: %v", err)
		}
	})
}
