package coordinator

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/pagurus-project/pagurus/coordinator/api"
	"github.com/pagurus-project/pagurus/coordinator/member"
	"github.com/pagurus-project/pagurus/coordinator/scheduler"
	"github.com/pagurus-project/pagurus/migrate"
	migratev1 "github.com/pagurus-project/pagurus/proto/migrate/v1"
	"github.com/pagurus-project/pagurus/trust"
)

// hostPatience is how long a list waits for one host.
const hostPatience = 2 * time.Second

func (s *Server) registerHosts(a huma.API) {
	huma.Register(a, huma.Operation{
		OperationID: "hosts", Method: http.MethodGet, Path: "/v1/hosts", Summary: "All hosts",
		Description: "Those that are dead or have left are listed with what is known of them.",
	}, func(ctx context.Context, _ *struct{}) (*document[api.Hosts], error) {
		return answer(s.hosts(ctx), nil)
	})

	huma.Register(a, huma.Operation{
		OperationID: "processes", Method: http.MethodGet, Path: "/v1/processes", Summary: "Processes that could be moved",
	}, func(ctx context.Context, in *struct {
		Host string `query:"host" maxLength:"63" doc:"only those of this host"`
	},
	) (*document[api.Processes], error) {
		return answer(s.processes(ctx, in.Host))
	})
}

// registerStatus is what each server answers for itself.
func (s *Server) registerStatus(a huma.API) {
	huma.Register(a, huma.Operation{
		OperationID: "status", Method: http.MethodGet, Path: "/v1/status", Summary: "The view of the server that is asked",
	}, func(context.Context, *struct{}) (*document[api.Status], error) {
		return answer(s.status(), nil)
	})
}

func (s *Server) status() api.Status {
	raft := s.log.Status()
	leader, _ := s.log.Leader()
	_, err := s.scheduler.Leading()
	status := api.Status{
		Name: s.config.Name, Version: s.config.Version, Leader: leader, Leads: err == nil,
		State: raft.State, Term: raft.Term, Last: raft.LastIndex, Applied: raft.Applied,
		Bootstrapped: s.log.Bootstrapped(), Expect: s.config.Expect, Founders: names(s.founders()),
		Servers: []api.Server{}, Hosts: []api.HostStatus{},
	}
	for _, server := range s.log.Servers() {
		status.Servers = append(status.Servers, api.Server{
			Name: server.Name, Address: server.Address, Voter: server.Voter, Status: "unknown",
		})
	}
	for _, m := range s.group.Members() {
		switch i := slices.IndexFunc(status.Servers, func(s api.Server) bool { return s.Name == m.Name }); {
		case m.Role == trust.RoleAgent:
			status.Hosts = append(status.Hosts, api.HostStatus{Name: m.Name, Status: string(m.Status), Version: m.Meta.Version})
		case i >= 0:
			status.Servers[i].Status = string(m.Status)
		default:
			status.Servers = append(status.Servers, api.Server{Name: m.Name, Address: m.Meta.Raft, Status: string(m.Status)})
		}
	}
	return status
}

// agents are the members that are agents.
func (s *Server) agents() []member.Member {
	return slices.DeleteFunc(s.group.Members(), func(m member.Member) bool { return m.Role != trust.RoleAgent })
}

// askAgents asks the agents of some hosts at once. A list is better short of a
// host than late, so none is waited for long.
func (s *Server) askAgents(ctx context.Context, agents []member.Member, ask func(ctx context.Context, i int, agent migratev1.AgentClient) error) []error {
	ctx, cancel := context.WithTimeout(ctx, hostPatience)
	defer cancel()
	errs := make([]error, len(agents))
	var wg sync.WaitGroup
	for i, m := range agents {
		if m.Status != member.Alive {
			errs[i] = fmt.Errorf("%s is %s", m.Name, m.Status)
			continue
		}
		wg.Go(func() {
			agent, err := s.conns.Agent(m.Name)
			if err == nil {
				err = ask(ctx, i, agent)
			}
			errs[i] = err
		})
	}
	wg.Wait()
	return errs
}

func (s *Server) hosts(ctx context.Context) api.Hosts {
	agents := s.agents()
	hosts := make([]migrate.Host, len(agents))
	migrations := s.scheduler.Migrations()
	for i, m := range agents {
		address, _, _ := net.SplitHostPort(m.Meta.GRPC)
		hosts[i] = migrate.Host{Name: m.Name, Address: address, Status: string(m.Status), Agent: m.Meta.Version}
		for _, r := range migrations {
			if !r.Settled && (r.From == m.Name || r.To == m.Name) {
				hosts[i].Migrations++
			}
		}
	}
	s.askAgents(ctx, agents, func(ctx context.Context, i int, agent migratev1.AgentClient) error {
		d, err := agent.Describe(ctx, &migratev1.DescribeRequest{})
		if err != nil {
			return err
		}
		h := &hosts[i]
		h.Kernel, h.CPUs, h.Load1 = d.GetKernel(), int(d.GetCpus()), scheduler.Finite(d.GetLoad1())
		h.MemoryBytes, h.FreeBytes, h.Agent = d.GetMemoryBytes(), d.GetFreeBytes(), d.GetAgentVersion()
		return nil
	})
	return api.Hosts{Hosts: hosts}
}

func (s *Server) processes(ctx context.Context, host string) (api.Processes, error) {
	agents := s.agents()
	if host != "" {
		agents = slices.DeleteFunc(agents, func(m member.Member) bool { return m.Name != host })
		if len(agents) == 0 {
			// Or nothing has been heard of it yet.
			_, err := s.conns.Agent(host)
			return api.Processes{}, cmp.Or(err, fmt.Errorf("%s: %w", host, scheduler.ErrNoSuchHost))
		}
	}
	found := make([][]migrate.Process, len(agents))
	errs := s.askAgents(ctx, agents, func(ctx context.Context, i int, agent migratev1.AgentClient) error {
		resp, err := agent.ListProcesses(ctx, &migratev1.ListProcessesRequest{})
		if err != nil {
			return err
		}
		found[i] = scheduler.Processes(resp.GetProcesses(), agents[i].Name)
		return nil
	})
	list := api.Processes{Processes: append([]migrate.Process{}, slices.Concat(found...)...), Unreachable: []string{}}
	for i, err := range errs {
		if err == nil {
			continue
		}
		if host != "" {
			return list, newProblem(http.StatusBadGateway, api.CodeUnreachable, fmt.Sprintf("%s does not answer: %v", host, err))
		}
		if agents[i].Status == member.Alive {
			list.Unreachable = append(list.Unreachable, agents[i].Name)
		}
	}
	slices.SortFunc(list.Processes, func(a, b migrate.Process) int {
		return cmp.Or(cmp.Compare(a.Host, b.Host), cmp.Compare(a.PID, b.PID))
	})
	return list, nil
}
