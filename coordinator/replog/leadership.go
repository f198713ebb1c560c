package replog

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/hashicorp/raft"
)

// Lead calls lead each time that this server has won an election and has
// applied everything that was written before, and cancels its context when
// leadership is lost. The next call begins after the last one has returned.
// The term is higher than that of every leader before. Lead returns when ctx
// ends.
func (l *Log) Lead(ctx context.Context, lead func(ctx context.Context, term uint64)) {
	for won := false; ; {
		if !won {
			select {
			case <-ctx.Done():
				return
			case won = <-l.notify:
				continue
			}
		}
		leading, cancel := context.WithCancel(ctx)
		var wg sync.WaitGroup
		wg.Go(func() {
			if term, err := l.catchUp(leading); err == nil {
				lead(leading, term)
			}
		})
		select {
		case <-ctx.Done():
		case won = <-l.notify: // lost, or lost and won again in between
		}
		cancel()
		wg.Wait()
		if ctx.Err() != nil {
			return
		}
	}
}

// catchUp waits until this server holds what was decided before it led. It
// fails only if leadership is lost again, which raft announces by itself.
func (l *Log) catchUp(ctx context.Context) (term uint64, err error) {
	for ctx.Err() == nil {
		term = l.raft.CurrentTerm()
		err = l.Barrier(ctx)
		switch {
		case err == nil && l.raft.CurrentTerm() == term:
			return term, nil
		case errors.Is(err, raft.ErrEnqueueTimeout):
		case err != nil:
			return 0, err
		}
	}
	return 0, ctx.Err()
}

// Leader returns the name of the server that leads as far as this one knows,
// empty if none does, and a channel that is closed when this changes.
func (l *Log) Leader() (name string, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, id := l.raft.LeaderWithID()
	return string(id), l.changed
}

// watchLeader replaces and closes the channel of Leader at each change.
func (l *Log) watchLeader(ctx context.Context) {
	// An observation only wakes; who leads is read when it is asked for. So
	// one that is dropped for want of room loses nothing.
	wake := make(chan raft.Observation, 1)
	observer := raft.NewObserver(wake, false, func(o *raft.Observation) bool {
		_, ok := o.Data.(raft.LeaderObservation)
		return ok
	})
	l.raft.RegisterObserver(observer)
	defer l.raft.DeregisterObserver(observer)
	for {
		select {
		case <-ctx.Done():
			return
		case <-wake:
			l.mu.Lock()
			close(l.changed)
			l.changed = make(chan struct{})
			l.mu.Unlock()
		}
	}
}

// TransferLeadership hands over to the server that is most up to date, if
// this one leads and there is another.
func (l *Log) TransferLeadership() error {
	if l.raft.State() != raft.Leader || len(l.Servers()) < 2 {
		return nil
	}
	if err := l.raft.LeadershipTransfer().Error(); err != nil {
		return fmt.Errorf("handing over leadership: %w", err)
	}
	return nil
}

// A Server is one member of raft's configuration.
type Server struct {
	Name    string
	Address string
	Voter   bool
}

// Servers returns raft's configuration as this server has it, sorted by name.
func (l *Log) Servers() []Server {
	var servers []Server
	for _, s := range l.raft.GetConfiguration().Configuration().Servers {
		servers = append(servers, Server{Name: string(s.ID), Address: string(s.Address), Voter: s.Suffrage == raft.Voter})
	}
	slices.SortFunc(servers, func(a, b Server) int { return strings.Compare(a.Name, b.Name) })
	return servers
}

// Bootstrapped reports whether this server has ever been part of a cluster.
func (l *Log) Bootstrapped() bool { return l.raft.LastIndex() > 0 }

// Bootstrap makes a new cluster of these servers. All of them may call it, with
// the same list, and only if none is part of a cluster already.
func (l *Log) Bootstrap(servers []Server) error {
	var conf raft.Configuration
	for _, s := range servers {
		conf.Servers = append(conf.Servers, raft.Server{ID: raft.ServerID(s.Name), Address: raft.ServerAddress(s.Address)})
	}
	if err := l.raft.BootstrapCluster(conf).Error(); err != nil {
		return fmt.Errorf("making a cluster of %d servers: %w", len(servers), err)
	}
	return nil
}

// AddVoter makes a server part of the cluster, or corrects its address. Only
// the leader can do it.
func (l *Log) AddVoter(name, address string) error {
	future := l.raft.AddVoter(raft.ServerID(name), raft.ServerAddress(address), 0, enqueueTimeout)
	if err := future.Error(); err != nil {
		return fmt.Errorf("adding the server %s: %w", name, classify(err))
	}
	return nil
}

// Status is this server's own view of raft.
type Status struct {
	State     string // Leader, Follower, Candidate or Shutdown
	Term      uint64
	LastIndex uint64
	Applied   uint64
}

// Status returns it.
func (l *Log) Status() Status {
	return Status{
		State: l.raft.State().String(), Term: l.raft.CurrentTerm(),
		LastIndex: l.raft.LastIndex(), Applied: l.raft.AppliedIndex(),
	}
}
