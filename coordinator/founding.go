package coordinator

// How a cluster comes about without a list of servers in anybody's
// configuration, as Nomad's bootstrap_expect does it, with more care:
//
//  1. A server without raft state looks at gossip until it sees as many living
//     servers as are expected. The founders are the first so many by name.
//  2. It asks every other server that it sees for its status. If one is part of
//     a cluster already, there is nothing to found: a founder of that one is
//     asked for its vote, anybody else is added by its leader. If one does not
//     answer, expects another number, or sees other founders, it looks again
//     later.
//  3. Otherwise it bootstraps raft with the founders. All of them do so, each
//     on its own, with the same list: raft holds equal first entries for one.
//
// Two clusters could come about only if two sets of servers saw different
// founders and each set was told by all that it sees that they see the same,
// which gossip's exchange of whole lists rules out but for moments.

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/pagurus-project/pagurus/coordinator/api"
	"github.com/pagurus-project/pagurus/coordinator/logline"
	"github.com/pagurus-project/pagurus/coordinator/member"
	"github.com/pagurus-project/pagurus/coordinator/replog"
	"github.com/pagurus-project/pagurus/trust"
)

// How often membership is looked at when it has not changed, since a server's
// answer may have.
const (
	foundInterval = time.Second
	addInterval   = 5 * time.Second
)

// statusPatience is how long another server may take to tell its status.
const statusPatience = 2 * time.Second

// servers are the living coordinators that gossip knows, by name.
func (s *Server) servers() []member.Member {
	return slices.DeleteFunc(s.group.Members(), func(m member.Member) bool {
		return m.Role != trust.RoleCoordinator || m.Status != member.Alive
	})
}

// founders are those that would form a new cluster now, none if they are too few.
func (s *Server) founders() []replog.Server {
	servers := s.servers()
	if s.config.Expect == 0 || len(servers) < s.config.Expect {
		return nil
	}
	var founders []replog.Server
	for _, m := range servers[:s.config.Expect] {
		founders = append(founders, replog.Server{Name: m.Name, Address: m.Meta.Raft, Voter: true})
	}
	return founders
}

func names(servers []replog.Server) []string {
	out := make([]string, len(servers))
	for i, s := range servers {
		out[i] = s.Name
	}
	return out
}

// found works until this server is part of a cluster.
func (s *Server) found(ctx context.Context) {
	var told string // of what stands in the way, which may do so for long
	for !s.log.Bootstrapped() {
		changed := s.group.Changed()
		founders := s.founders()
		if slices.Contains(names(founders), s.config.Name) {
			if err := s.agreed(ctx, founders); err != nil {
				if err.Error() != told {
					s.logger.Info("not forming a cluster yet", logline.KeyReason, err)
				}
				told = err.Error()
			} else if err := s.log.Bootstrap(founders); err != nil {
				s.logger.Error("forming a cluster", logline.KeyError, err)
			} else {
				s.logger.Info("forming a cluster", "servers", names(founders))
				return
			}
		}
		if !await(ctx, changed, foundInterval) {
			return
		}
	}
}

// agreed asks the other servers whether they would found the same cluster.
func (s *Server) agreed(ctx context.Context, founders []replog.Server) error {
	for _, m := range s.servers() {
		if m.Name == s.config.Name {
			continue
		}
		status, err := s.statusOf(ctx, m)
		switch {
		case err != nil:
			return fmt.Errorf("asking %s for its status: %w", m.Name, err)
		case status.Bootstrapped:
			return fmt.Errorf("%s is part of a cluster already", m.Name)
		case status.Expect != s.config.Expect:
			return fmt.Errorf("%s expects %d servers, and this one %d", m.Name, status.Expect, s.config.Expect)
		case !slices.Equal(status.Founders, names(founders)):
			return fmt.Errorf("%s sees the founders %v, and this one %v", m.Name, status.Founders, names(founders))
		}
	}
	return nil
}

// addServers makes voters of servers that came after the cluster, and corrects
// the addresses of those that have moved. It runs while this server leads.
func (s *Server) addServers(ctx context.Context) {
	for {
		changed := s.group.Changed()
		for _, m := range s.servers() {
			if err := s.add(ctx, m); err != nil && ctx.Err() == nil {
				s.logger.Warn("not adding a server", logline.KeyHost, m.Name, logline.KeyError, err)
			}
		}
		if !await(ctx, changed, addInterval) {
			return
		}
	}
}

func (s *Server) add(ctx context.Context, m member.Member) error {
	servers := s.log.Servers()
	i := slices.IndexFunc(servers, func(s replog.Server) bool { return s.Name == m.Name })
	if i >= 0 && servers[i].Address == m.Meta.Raft {
		return nil
	}
	if i < 0 {
		status, err := s.statusOf(ctx, m)
		if err != nil {
			return fmt.Errorf("asking for its status: %w", err)
		}
		if status.Bootstrapped {
			return errors.New("its data_dir is that of another cluster; empty it if it is to join this one")
		}
	}
	s.logger.Info("adding a server", logline.KeyHost, m.Name, logline.KeyAddress, m.Meta.Raft)
	return s.log.AddVoter(m.Name, m.Meta.Raft)
}

// statusOf asks another coordinator.
func (s *Server) statusOf(ctx context.Context, m member.Member) (api.Status, error) {
	client, err := api.NewClient(api.Config{
		Servers:  []string{m.Meta.HTTP},
		TLS:      s.config.Credentials.Client(trust.AllowOnly(trust.Identity{Role: m.Role, Name: m.Name})),
		Patience: statusPatience,
	})
	if err != nil {
		return api.Status{}, err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, statusPatience)
	defer cancel()
	return client.Status(ctx)
}

// await returns when the channel is closed or the time is over, and reports
// whether ctx has not ended.
func await(ctx context.Context, changed <-chan struct{}, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-changed:
	case <-timer.C:
	}
	return true
}
