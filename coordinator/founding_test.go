package coordinator_test

import (
	"slices"
	"testing"
	"time"

	"github.com/pagurus-project/pagurus/coordinator/api"
	"github.com/pagurus-project/pagurus/coordinator/clustertest"
	"github.com/pagurus-project/pagurus/migrate"
)

// voters are the names of those that vote, as one server has it.
func voters(s api.Status) []string {
	var names []string
	for _, server := range s.Servers {
		if server.Voter {
			names = append(names, server.Name)
		}
	}
	return names
}

// TestFounding: three servers that are started one after the other wait for
// the last of them, and are one cluster then.
func TestFounding(t *testing.T) {
	c := clustertest.New(t)
	names := []string{"one", "three", "two"}
	c.AddCoordinators(3, names...)
	c.Boot("two")
	c.Boot("one")
	for _, name := range []string{"one", "two"} {
		s := c.AwaitStatus(name, func(s api.Status) bool { return len(s.Servers) == 2 })
		if s.Bootstrapped || s.Leader != "" || len(s.Founders) != 0 {
			t.Errorf("two of three: %+v", s)
		}
	}
	c.Boot("three")
	leader := c.Leader()
	for _, name := range names {
		// One that looked last was asked for its vote, and knows the leader before the log.
		s := c.AwaitStatus(name, func(s api.Status) bool { return s.Leader == leader && s.Bootstrapped })
		if !slices.Equal(voters(s), names) {
			t.Errorf("%s: %+v", name, s)
		}
	}
}

// TestAddedLater: a server that expects nobody waits until the leader has made
// it a voter, and holds what was written before.
func TestAddedLater(t *testing.T) {
	c := clustertest.Start(t, 1)
	created, err := c.Operator().Move(t.Context(), api.MoveRequest{PID: 7, From: "host-a", To: "host-a"})
	if err != nil {
		t.Fatal(err)
	}
	c.Settle(c.Operator(), created.ID, migrate.StateRefused)
	c.AddCoordinators(0, "later")
	c.Boot("later")
	c.AwaitStatus("one", func(s api.Status) bool { return slices.Equal(voters(s), []string{"later", "one"}) })
	// Two of two are a majority; the one that was added can take over.
	c.AwaitStatus("later", func(s api.Status) bool { return s.Leader == "one" && s.Applied == s.Last })
	c.Stop("one")
	c.Boot("one")
	c.Leader()
	r, err := c.Operator().Migration(t.Context(), created.ID)
	if err != nil || r.State != migrate.StateRefused {
		t.Errorf("got %+v, %v", r, err)
	}
}

// TestExpectationsDiffer: servers that do not agree on how many they are found
// nothing, rather than two clusters.
func TestExpectationsDiffer(t *testing.T) {
	c := clustertest.New(t)
	c.AddCoordinators(3, "one", "two")
	c.AddCoordinators(5, "three")
	for _, name := range []string{"one", "two", "three"} {
		c.Boot(name)
	}
	for _, name := range []string{"one", "two", "three"} {
		c.AwaitStatus(name, func(s api.Status) bool { return len(s.Servers) == 3 })
	}
	// Time for some attempts, of which there is one a second and one a change.
	for end := time.After(3 * time.Second); ; {
		for _, name := range c.Running() {
			if s := c.AwaitStatus(name, func(api.Status) bool { return true }); s.Bootstrapped {
				t.Fatalf("%s is part of a cluster", name)
			}
		}
		select {
		case <-end:
			return
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// TestOfAnotherCluster: a server that has been part of another cluster is not
// added, since its log and this one's have nothing in common.
func TestOfAnotherCluster(t *testing.T) {
	c := clustertest.New(t)
	c.AddCoordinators(1, "stray")
	c.Boot("stray")
	c.Leader()
	c.Stop("stray")
	c.AddCoordinators(1, "one")
	c.Boot("one")
	c.Leader()
	c.Boot("stray")
	// Both lead on their own, and see each other.
	for _, name := range []string{"one", "stray"} {
		s := c.AwaitStatus(name, func(s api.Status) bool { return len(s.Servers) == 2 && s.Leads })
		if !slices.Equal(voters(s), []string{name}) {
			t.Errorf("%s: %+v", name, s)
		}
	}
}
