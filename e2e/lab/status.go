package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
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

// clusterStatus is what the lab reads of the coordinator's GET /v1/status.
type clusterStatus struct {
	Leader string          `json:"leader"`
	Hosts  []hostOfCluster `json:"hosts"`
}

type hostOfCluster struct {
	Name   string `json:"name"`
	Status string `json:"status"`
}

// joined is the status of a host whose agent is there.
const joined = "alive"

func (c clusterStatus) agent(host string) string {
	for _, h := range c.Hosts {
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
	var cluster clusterStatus
	for _, socket := range l.Sockets() {
		var err error
		if cluster, err = askStatus(ctx, socket); err == nil {
			break
		}
	}
	s := Status{ID: l.plan.ID, Leader: cluster.Leader}
	for _, h := range l.plan.Hosts {
		if h.Agent {
			s.Hosts = append(s.Hosts, HostStatus{Name: h.Name, Address: h.Address.Addr().String(), Agent: cluster.agent(h.Name)})
		}
	}
	return s
}

// askTimeout is for one coordinator on the same machine.
const askTimeout = 2 * time.Second

func askStatus(ctx context.Context, socket string) (clusterStatus, error) {
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	defer transport.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://coordinator/v1/status", nil)
	if err != nil {
		return clusterStatus{}, err
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return clusterStatus{}, fmt.Errorf("asking %s: %w", socket, err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return clusterStatus{}, fmt.Errorf("asking %s: %s", socket, response.Status)
	}
	var c clusterStatus
	if err := json.NewDecoder(io.LimitReader(response.Body, 1<<20)).Decode(&c); err != nil {
		return clusterStatus{}, fmt.Errorf("asking %s: %w", socket, err)
	}
	return c, nil
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
	var cluster clusterStatus
	for _, h := range l.plan.Hosts {
		if !h.Coordinator {
			continue
		}
		c, err := askStatus(ctx, l.plan.coordinatorSocket(h.Name))
		if err != nil {
			lacks = append(lacks, lack{"coordinator of " + h.Name + " does not answer", h.Name, coordinatorDaemon})
		} else if c.Leader == "" {
			lacks = append(lacks, lack{"coordinator of " + h.Name + " knows no leader", h.Name, coordinatorDaemon})
		} else {
			cluster = c
		}
	}
	if len(lacks) > 0 {
		return lacks
	}
	progress("leader is " + cluster.Leader)
	for _, h := range l.plan.Hosts {
		if !h.Agent {
			continue
		}
		if cluster.agent(h.Name) != joined {
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
