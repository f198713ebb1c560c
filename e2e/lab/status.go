package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/pagurus-project/pagurus/coordinator/api"
)

// Status is what a lab is doing.
type Status struct {
	ID     string       `json:"id"`
	Hosts  []HostStatus `json:"hosts"`
	Leader string       `json:"leader"`
}

// HostStatus is one host that may have an agent.
type HostStatus struct {
	Name    string `json:"name"`
	Address string `json:"address"`
	Agent   string `json:"agent"` // as the coordinator knows it, or "unknown"
}

// unknown is an agent that no coordinator has told of.
const unknown = "unknown"

// joined is the status of an agent that is there.
const joined = "alive"

// agentStatus is how a host's agent is, as a coordinator has heard.
func agentStatus(s api.Status, host string) string {
	for _, h := range s.Hosts {
		if h.Name == host {
			return h.Status
		}
	}
	return unknown
}

// Sockets are the unix sockets on which the lab's coordinator can be asked,
// each by way of another agent.
func (l *Lab) Sockets() []string {
	var sockets []string
	for _, h := range l.plan.Hosts {
		if h.Agent {
			sockets = append(sockets, l.plan.apiSocket(h.Name))
		}
	}
	return sockets
}

// Status asks the lab's coordinator. That none answers is a status too.
func (l *Lab) Status(ctx context.Context) Status {
	var cluster api.Status
	for _, socket := range l.Sockets() {
		var err error
		if cluster, err = askStatus(ctx, socket); err == nil {
			break
		}
	}
	s := Status{ID: l.plan.ID, Leader: cluster.Leader}
	for _, h := range l.plan.Hosts {
		if h.Agent {
			s.Hosts = append(s.Hosts, HostStatus{Name: h.Name, Address: h.Address.Addr().String(), Agent: agentStatus(cluster, h.Name)})
		}
	}
	return s
}

// askTimeout is for one coordinator on the same machine.
const askTimeout = 2 * time.Second

func askStatus(ctx context.Context, socket string) (api.Status, error) {
	// So little patience is for one attempt.
	client, err := api.NewClient(api.Config{Socket: socket, Patience: time.Nanosecond})
	if err != nil {
		return api.Status{}, err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	status, err := client.Status(ctx)
	if err != nil {
		return api.Status{}, fmt.Errorf("asking %s: %w", socket, err)
	}
	return status, nil
}

// pollInterval is how often daemons that come up are asked for how they are.
const pollInterval = 50 * time.Millisecond

// awaitDaemons waits until there is a leader, all agents have joined and every
// socket that clients may use answers.
func (l *Lab) awaitDaemons(ctx context.Context, progress func(string)) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	told := make(map[string]bool)
	var missing []lack
	for {
		now := l.missing(ctx, func(what string) {
			if !told[what] {
				told[what] = true
				progress(what)
			}
		})
		if ctx.Err() != nil {
			// A look that was cut short finds nobody at home.
			return l.blame(ctx.Err(), missing)
		}
		if missing = now; len(missing) == 0 {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// A lack is what a lab still waits for, and who should see to it.
type lack struct {
	what, host, daemon string
}

// missing looks at the lab once and tells progress what is there.
func (l *Lab) missing(ctx context.Context, progress func(string)) []lack {
	var lacks []lack
	var cluster api.Status
	for _, h := range l.plan.Hosts {
		if !h.Coordinator {
			continue
		}
		c, err := askStatus(ctx, l.plan.coordinatorSocket(h.Name))
		if err != nil {
			lacks = append(lacks, lack{"coordinator of " + h.Name + " does not answer", h.Name, coordinatorDaemon})
		} else if c.Leader == "" {
			lacks = append(lacks, lack{"coordinator of " + h.Name + " knows no leader", h.Name, coordinatorDaemon})
		} else if c.Leads || cluster.Name == "" {
			cluster = c
		}
	}
	if len(lacks) > 0 {
		return lacks
	}
	if !cluster.Leads {
		return []lack{{"coordinator of " + cluster.Leader + " has not taken up its duties", cluster.Leader, coordinatorDaemon}}
	}
	progress("leader is " + cluster.Leader)
	for _, h := range l.plan.Hosts {
		if !h.Agent {
			continue
		}
		if agentStatus(cluster, h.Name) != joined {
			lacks = append(lacks, lack{"agent of " + h.Name + " has not joined", h.Name, agentDaemon})
		} else if _, err := askStatus(ctx, l.plan.apiSocket(h.Name)); err != nil {
			lacks = append(lacks, lack{"agent of " + h.Name + " does not answer", h.Name, agentDaemon})
		} else {
			progress("agent of " + h.Name + " has joined")
		}
	}
	return lacks
}

// blame says who is missing, with the end of each one's log.
func (l *Lab) blame(cause error, missing []lack) error {
	if errors.Is(cause, context.Canceled) {
		return cause
	}
	var text strings.Builder
	for _, m := range missing {
		log := l.plan.daemonLog(m.host, m.daemon)
		fmt.Fprintf(&text, "\n%s; the end of its log, %s:\n%s", m.what, log, lastLines(log, 10))
	}
	return fmt.Errorf("daemons did not find each other in time:%s", text.String())
}

// lastLines are the last lines of a file, indented.
func lastLines(path string, n int) string {
	content, err := os.ReadFile(path)
	if err != nil {
		return "    " + err.Error()
	}
	lines := strings.Split(strings.TrimRight(string(content), "\n"), "\n")
	return "    " + strings.Join(lines[max(0, len(lines)-n):], "\n    ")
}
