package coordinator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc"

	"github.com/pagurus-project/pagurus/coordinator/addresses"
	"github.com/pagurus-project/pagurus/coordinator/guests"
	"github.com/pagurus-project/pagurus/coordinator/logline"
	"github.com/pagurus-project/pagurus/coordinator/member"
	"github.com/pagurus-project/pagurus/coordinator/replog"
	"github.com/pagurus-project/pagurus/coordinator/scheduler"
	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/trust"
)

// A Server is one running coordinator.
type Server struct {
	config    Config
	logger    *slog.Logger
	group     *member.Group
	conns     *conns
	log       *replog.Log
	scheduler *scheduler.Scheduler
	addresses *addresses.Keeper
	guests    *guests.Keeper
	grpc      *grpc.Server
	http      *http.Server
	httpAddr  net.Addr

	// stopping ends when the server is to stop; background work and streams
	// to clients end with it.
	stopping context.Context
	stop     context.CancelFunc
	running  sync.WaitGroup
	failed   chan error
	closing  []closer
}

// A closer is one step of taking the server apart.
type closer struct {
	what string
	do   func() error
}

// Start makes a server and returns when it answers requests, which is before
// there is a leader.
func Start(c Config) (_ *Server, err error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	c = c.withDefaults()
	s := &Server{config: c, logger: c.Logger.With(logline.KeyServer, c.Name), failed: make(chan error, 1)}
	s.stopping, s.stop = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()

	// Every port is taken before gossip tells anybody of it.
	raftListener, err := s.listen("raft", c.RaftPort)
	if err != nil {
		return nil, err
	}
	grpcListener, err := s.listen("gRPC", c.GRPCPort)
	if err != nil {
		return nil, err
	}
	httpListener, err := s.listen("HTTP", c.HTTPPort)
	if err != nil {
		return nil, err
	}
	s.httpAddr = httpListener.Addr()

	// Gossip comes before the log, whose peers are found by it.
	s.group, err = member.Join(s.stopping, member.Config{
		Name: c.Name, Role: trust.RoleCoordinator, Bind: netip.AddrPortFrom(c.Advertise, c.GossipPort),
		Seeds: c.Join, Known: s.recall(), Key: c.Key, Logger: s.logger,
		Meta: member.Meta{
			GRPC: grpcListener.Addr().String(), HTTP: httpListener.Addr().String(), Raft: raftListener.Addr().String(),
			Version: c.Version,
		},
	})
	if err != nil {
		return nil, err
	}
	s.closeLast("gossip", s.group.Close)
	s.conns = newConns(c.Credentials, s.group)
	s.closeLast("connections", s.conns.close)

	// The log tells the scheduler of changes, and the scheduler writes to the
	// log: what a snapshot tells before there is a scheduler is read when it
	// begins to lead.
	var tell atomic.Pointer[scheduler.Scheduler]
	var tellAddresses atomic.Pointer[addresses.Keeper]
	s.log, err = replog.Open(replog.Config{
		Name: c.Name, Dir: filepath.Join(c.DataDir, "raft"), Listener: raftListener, Credentials: c.Credentials,
		Address: func(name string) (string, bool) {
			m, ok := s.group.Member(trust.RoleCoordinator, name)
			return m.Meta.Raft, ok
		},
		Keep: c.Keep, Timing: c.RaftTiming, Logger: s.logger,
		Changed: func(r migrate.Record, outstanding []migrate.Effect) {
			if sched := tell.Load(); sched != nil {
				sched.Changed(r, outstanding)
			}
		},
		AddressesChanged: func() {
			if keeper := tellAddresses.Load(); keeper != nil {
				keeper.Changed()
			}
		},
	})
	if err != nil {
		return nil, err
	}
	s.closeLast("log", s.log.Close)
	s.scheduler = scheduler.New(s.log, s.conns, c.Timing, s.logger)
	tell.Store(s.scheduler)
	s.addresses = addresses.New(s.log, s.conns, s.group.Members, s.logger)
	tellAddresses.Store(s.addresses)
	s.guests = guests.New(s.conns, s.group.Members, s.logger)

	s.serveGRPC(grpcListener)
	if err := s.serveHTTP(httpListener); err != nil {
		return nil, err
	}
	s.running.Go(func() { s.remember(s.stopping) })
	s.running.Go(func() { s.found(s.stopping) })
	s.running.Go(func() { s.log.Lead(s.stopping, s.lead) })
	return s, nil
}

// lead is what this server does while it leads.
func (s *Server) lead(ctx context.Context, term uint64) {
	var wg sync.WaitGroup
	wg.Go(func() { s.addServers(ctx) })
	wg.Go(func() { s.addresses.Lead(ctx) })
	wg.Go(func() { s.guests.Lead(ctx) })
	s.scheduler.Lead(ctx, term)
	wg.Wait()
}

// listen takes a port. Whoever serves it closes it; to close it once more is
// no error, and if nobody comes to serve it, it is closed all the same.
func (s *Server) listen(what string, port uint16) (net.Listener, error) {
	l, err := net.Listen("tcp", net.JoinHostPort(s.config.Advertise.String(), strconv.Itoa(int(port))))
	if err != nil {
		return nil, fmt.Errorf("listening for %s: %w", what, err)
	}
	s.closeLast(what, func() error {
		if err := l.Close(); !errors.Is(err, net.ErrClosed) {
			return err
		}
		return nil
	})
	return l, nil
}

// closeLast notes a step of Close; the last one noted is done first.
func (s *Server) closeLast(what string, do func() error) {
	s.closing = append(s.closing, closer{what, do})
}

// Shutdown goes as politely as ctx allows: requests are no longer taken, the
// leadership is handed over so that nobody has to wait for an election, and
// the others are told that this server was not lost.
func (s *Server) Shutdown(ctx context.Context) error {
	s.stop()
	// What the others are not told they find out by themselves, only later.
	if err := errors.Join(s.http.Shutdown(ctx), s.log.TransferLeadership()); err != nil {
		s.logger.Warn("not a polite shutdown", logline.KeyError, err)
	}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		s.grpc.GracefulStop()
	}()
	select {
	case <-stopped:
	case <-ctx.Done():
	}
	if err := s.group.Leave(ctx); err != nil {
		s.logger.Warn("not a polite shutdown", logline.KeyError, err)
	}
	err := s.Close()
	<-stopped // Close has made an end of it
	return err
}

// Close ends the server without a word to anybody, as a crash would.
func (s *Server) Close() error {
	s.stop()
	var errs []error
	for _, c := range slices.Backward(s.closing) {
		if err := c.do(); err != nil {
			errs = append(errs, fmt.Errorf("closing %s: %w", c.what, err))
		}
	}
	s.closing = nil
	s.running.Wait()
	return errors.Join(errs...)
}

// Failed receives an error when the server can no longer serve, for reasons of
// its own: it is to be shut down then.
func (s *Server) Failed() <-chan error { return s.failed }

// fail makes Failed receive; the first error is enough.
func (s *Server) fail(err error) {
	select {
	case s.failed <- err:
	default:
	}
}

// HTTPAddress is where the HTTP API is served.
func (s *Server) HTTPAddress() string { return s.httpAddr.String() }

// GossipAddress is what others may join.
func (s *Server) GossipAddress() string { return s.group.Address().String() }
