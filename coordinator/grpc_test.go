package coordinator_test

import (
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pagurus-project/pagurus/coordinator/api"
	"github.com/pagurus-project/pagurus/coordinator/clustertest"
	"github.com/pagurus-project/pagurus/coordinator/clustertest/agenttest"
	"github.com/pagurus-project/pagurus/migrate"
	migratev1 "github.com/pagurus-project/pagurus/proto/migrate/v1"
)

// TestDecision asks for the decision at every server, before and after it.
func TestDecision(t *testing.T) {
	c := clustertest.Start(t, 3)
	c.World.AddProcess("host-a", 7)
	reached, goOn := make(chan struct{}), make(chan struct{})
	once(c.World, "host-a", agenttest.Promised, func() {
		close(reached)
		<-goOn
	})
	client := c.Operator()
	created, err := client.Move(t.Context(), api.MoveRequest{PID: 7, From: "host-a", To: "host-b"})
	if err != nil {
		t.Fatal(err)
	}
	c.Reach("the step", reached)
	decision := func(server, host string, epoch uint64) (*migratev1.DecisionResponse, error) {
		return c.Agent(host).Coordinator(server).Decision(t.Context(), &migratev1.DecisionRequest{
			Ref: &migratev1.Ref{Migration: created.ID, Epoch: epoch}, Host: host,
		})
	}
	var epoch uint64
	for _, server := range c.Running() {
		d, err := decision(server, "host-a", 1<<60)
		if err != nil || d.GetDecision() != 0 || !d.GetKnown() || d.GetState() != string(migrate.StatePrecopy) {
			t.Errorf("%s before the decision: %v, %v", server, d, err)
		}
		epoch = d.GetEpoch()
	}
	close(goOn)
	c.Settle(client, created.ID, migrate.StateDone)
	for _, server := range c.Running() {
		for _, host := range []string{"host-a", "host-b"} {
			d, err := decision(server, host, epoch)
			if err != nil || d.GetDecision() != migratev1.Decision_DECISION_COMMIT {
				t.Errorf("%s to %s: %v, %v", server, host, d, err)
			}
		}
	}
}

// TestAgentsSpeakForThemselves: no agent reports or asks in another's name.
func TestAgentsSpeakForThemselves(t *testing.T) {
	c := clustertest.Start(t, 3)
	for _, server := range c.Running() {
		coordinator := c.Agent("host-b").Coordinator(server)
		_, err := coordinator.Decision(t.Context(), &migratev1.DecisionRequest{Ref: &migratev1.Ref{Migration: "m1"}, Host: "host-a"})
		if status.Code(err) != codes.PermissionDenied {
			t.Errorf("decision at %s: %v", server, err)
		}
		_, err = coordinator.Report(t.Context(), &migratev1.ReportRequest{Ref: &migratev1.Ref{Migration: "m1"}, Host: "host-a"})
		if status.Code(err) != codes.PermissionDenied {
			t.Errorf("report at %s: %v", server, err)
		}
	}
}

// TestNoLeader: without a majority calls fail at once, to be repeated elsewhere.
func TestNoLeader(t *testing.T) {
	c := clustertest.Start(t, 3)
	left := c.Follower()
	for _, name := range c.Running() {
		if name != left {
			c.Kill(name)
		}
	}
	c.AwaitStatus(left, func(s api.Status) bool { return s.Leader == "" })
	_, err := c.Agent("host-a").Coordinator(left).Decision(t.Context(), &migratev1.DecisionRequest{Ref: &migratev1.Ref{Migration: "m1"}, Host: "host-a"})
	if status.Code(err) != codes.Unavailable {
		t.Errorf("decision without a leader: %v", err)
	}
}
