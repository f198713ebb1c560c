package coordinator_test

import (
	"fmt"
	"sync"
	"testing"

	"github.com/pagurus-project/pagurus/coordinator/api"
	"github.com/pagurus-project/pagurus/coordinator/clustertest"
	"github.com/pagurus-project/pagurus/coordinator/clustertest/agenttest"
	"github.com/pagurus-project/pagurus/migrate"
)

// once has f called at one step of a host, before it, the first time.
func once(w *agenttest.World, host string, step agenttest.Step, f func()) {
	var first sync.Once
	w.OnStep(func(h string, s agenttest.Step) {
		if h == host && s == step {
			first.Do(f)
		}
	})
}

// TestLeaderLostInEveryPhase kills the leader before each step of a migration.
// The next leader carries on by the log, and as the agents repeat what they
// have to say, the process moves all the same.
func TestLeaderLostInEveryPhase(t *testing.T) {
	c := clustertest.Start(t, 3)
	client := c.Operator()
	pid := 100
	for _, at := range []struct {
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
	} {
		t.Run(string(at.step), func(t *testing.T) {
			pid++
			c.World.AddProcess("host-a", pid)
			var killed string
			once(c.World, at.host, at.step, func() {
				killed = c.Leader()
				c.Kill(killed)
			})
			created, err := client.Move(t.Context(), api.MoveRequest{PID: pid, From: "host-a", To: "host-b"})
			if err != nil {
				t.Fatal(err)
			}
			c.Settle(client, created.ID, migrate.StateDone)
			c.Eventually("the agents may forget it", func() bool { return c.World.Remembered() == 0 })
			c.World.MustRunOnlyOn("host-b", pid)
			if killed == "" {
				t.Fatal("the leader was not killed")
			}
			c.Boot(killed)
		})
	}
}

// TestAllLost kills all coordinators when the source has promised and nobody
// but the agents knows of it, and starts them again.
func TestAllLost(t *testing.T) {
	c := clustertest.Start(t, 3)
	c.World.AddProcess("host-a", 7)
	names := c.Running()
	once(c.World, "host-a", agenttest.Promised, func() {
		for _, name := range names {
			c.Kill(name)
		}
	})
	client := c.Operator()
	created, err := client.Move(t.Context(), api.MoveRequest{PID: 7, From: "host-a", To: "host-b"})
	if err != nil {
		t.Fatal(err)
	}
	c.Eventually("all coordinators are killed", func() bool { return len(c.Running()) == 0 })
	for _, name := range names {
		c.Boot(name)
	}
	c.Settle(client, created.ID, migrate.StateDone)
	c.World.MustRunOnlyOn("host-b", 7)
}

// TestAllLostWithTheSource kills the source's agent, too, and starts everybody
// again: agents and coordinators first, each once.
func TestAllLostWithTheSource(t *testing.T) {
	for _, agentFirst := range []bool{true, false} {
		t.Run(fmt.Sprintf("agent first %t", agentFirst), func(t *testing.T) {
			c := clustertest.Start(t, 3)
			c.World.AddProcess("host-a", 7)
			names := c.Running()
			dead := make(chan struct{})
			once(c.World, "host-a", agenttest.Promised, func() {
				for _, name := range names {
					c.Kill(name)
				}
				c.Agent("host-a").Kill()
				close(dead)
			})
			client := c.Operator()
			created, err := client.Move(t.Context(), api.MoveRequest{PID: 7, From: "host-a", To: "host-b"})
			if err != nil {
				t.Fatal(err)
			}
			c.Reach("the promise", dead)
			if agentFirst {
				c.Agent("host-a").Restart()
			}
			for _, name := range names {
				c.Boot(name)
			}
			if !agentFirst {
				c.Leader()
				c.Agent("host-a").Restart()
			}
			c.Settle(client, created.ID, migrate.StateDone)
			c.World.MustRunOnlyOn("host-b", 7)
		})
	}
}

// TestMajorityLost: without a majority nothing is decided, so that a source
// that has promised stays frozen, however long it takes.
func TestMajorityLost(t *testing.T) {
	c := clustertest.Start(t, 3)
	c.World.AddProcess("host-a", 7)
	left := c.Follower()
	once(c.World, "host-a", agenttest.Promised, func() {
		for _, name := range c.Running() {
			if name != left {
				c.Kill(name)
			}
		}
	})
	client := c.Operator()
	created, err := client.Move(t.Context(), api.MoveRequest{PID: 7, From: "host-a", To: "host-b"})
	if err != nil {
		t.Fatal(err)
	}
	c.AwaitStatus(left, func(s api.Status) bool { return s.Leader == "" })
	c.World.MustBeFrozen("host-a", 7)
	c.World.MustBeFrozen("host-b", 7)
	for _, name := range c.Lost() {
		c.Boot(name)
	}
	c.Settle(client, created.ID, migrate.StateDone)
	c.World.MustRunOnlyOn("host-b", 7)
}

// TestAgentLostAndBack kills each agent before each of its steps and starts it
// again at once. There is one copy after that, wherever.
func TestAgentLostAndBack(t *testing.T) {
	c := clustertest.Start(t, 1)
	client := c.Operator()
	pid := 200
	for _, at := range []struct {
		host string
		step agenttest.Step
		want migrate.State
	}{
		{"host-a", agenttest.Inspect, migrate.StateDone},
		{"host-b", agenttest.Reserve, migrate.StateDone},
		{"host-a", agenttest.Start, migrate.StateDone},
		{"host-a", agenttest.Freeze, migrate.StateAborted},
		{"host-b", agenttest.Prepare, migrate.StateAborted},
		{"host-a", agenttest.Promise, migrate.StateAborted},
		{"host-a", agenttest.Promised, migrate.StateDone},
		{"host-b", agenttest.Run, migrate.StateDone},
		{"host-b", agenttest.Running, migrate.StateDone},
		{"host-a", agenttest.Dispose, migrate.StateDone},
		{"host-b", agenttest.Forget, migrate.StateDone},
	} {
		t.Run(string(at.step), func(t *testing.T) {
			pid++
			c.World.AddProcess("host-a", pid)
			killed := make(chan struct{})
			once(c.World, at.host, at.step, func() {
				c.Agent(at.host).Kill()
				close(killed)
			})
			created, err := client.Move(t.Context(), api.MoveRequest{PID: pid, From: "host-a", To: "host-b"})
			if err != nil {
				t.Fatal(err)
			}
			c.Reach("the step", killed)
			c.Agent(at.host).Restart()
			c.Settle(client, created.ID, at.want)
			c.Eventually("the agents may forget it", func() bool { return c.World.Remembered() == 0 })
			if at.want == migrate.StateDone {
				c.World.MustRunOnlyOn("host-b", pid)
			} else {
				c.World.MustRunOnlyOn("host-a", pid)
			}
		})
	}
}

// TestHandOver stops the leader politely in the middle of a migration, which
// goes on under the next one while its watcher notices nothing.
func TestHandOver(t *testing.T) {
	c := clustertest.Start(t, 3)
	c.World.AddProcess("host-a", 7)
	reached, goOn := make(chan struct{}), make(chan struct{})
	once(c.World, "host-a", agenttest.Freeze, func() {
		close(reached)
		<-goOn
	})
	client := c.Operator()
	created, err := client.Move(t.Context(), api.MoveRequest{PID: 7, From: "host-a", To: "host-b"})
	if err != nil {
		t.Fatal(err)
	}
	c.Reach("the step", reached)
	first := c.Leader()
	var seen []migrate.State
	watched := make(chan error, 1)
	go func() {
		for r, err := range client.Watch(t.Context(), created.ID) {
			if err != nil {
				watched <- err
				return
			}
			seen = append(seen, r.State)
		}
		watched <- nil
	}()
	c.Stop(first)
	if second := c.Leader(); second == first {
		t.Errorf("%s leads again", second)
	}
	close(goOn)
	if err := <-watched; err != nil {
		t.Error(err)
	}
	if len(seen) == 0 || seen[len(seen)-1] != migrate.StateDone {
		t.Errorf("seen %v", seen)
	}
	c.Settle(client, created.ID, migrate.StateDone)
	c.World.MustRunOnlyOn("host-b", 7)
}
