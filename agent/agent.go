package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/pagurus-project/pagurus/coordinator/member"
	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/trust"
)

// An Agent is one running agent.
type Agent struct {
	config       Config
	timing       Timing
	logger       *slog.Logger
	journal      *journal
	group        *member.Group
	coordinators *coordinators
	grpc         *grpc.Server
	pageAddress  string
	looks        *looks
	addresses    *serviceAddresses

	// stopping ends when the agent is to stop in good order, alive when it
	// does nothing any more. Contexts of the whole agent, not of a call.
	stopping context.Context
	stop     context.CancelFunc
	alive    context.Context
	die      context.CancelFunc

	running  sync.WaitGroup // everything
	sessions sync.WaitGroup // those goroutines that call the engines
	closing  []closer

	mu     sync.Mutex
	known  map[string]*session  // by migration
	barred map[string]barredRef // by migration
}

// A barredRef forbids an attempt whose ABORT came before what it aborts.
type barredRef struct {
	epoch uint64
	since time.Time
}

// A closer is one step of taking the agent apart.
type closer struct {
	what string
	do   func() error
}

// Start makes an agent, takes up what its predecessor has left, and returns
// when it answers orders.
func Start(c Config) (_ *Agent, err error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if c.Source == nil || c.Target == nil || c.Addresses == nil {
		return nil, errors.New("both engines and a way to put on addresses are needed")
	}
	if c.Timing == (Timing{}) {
		c.Timing = DefaultTiming()
	}
	a := &Agent{
		config: c, timing: c.Timing, logger: c.Logger.With(keyHost, c.Host), looks: newLooks(),
		known: map[string]*session{}, barred: map[string]barredRef{},
	}
	a.alive, a.die = context.WithCancel(context.Background())
	a.stopping, a.stop = context.WithCancel(a.alive)
	defer func() {
		if err != nil {
			err = errors.Join(err, a.Close())
		}
	}()

	// The journal comes first: its lock shows that no other agent has its
	// hands on the same processes.
	if a.journal, err = openJournal(c.StateDir); err != nil {
		return nil, err
	}
	a.closeLast("journal", a.journal.close)
	entries, err := a.journal.read()
	if err != nil {
		return nil, err
	}
	a.sweep(entries)
	if err := a.undoInspections(); err != nil {
		return nil, err
	}
	if a.addresses, err = a.openAddresses(); err != nil {
		return nil, err
	}

	// Every port is taken before gossip tells anybody of it.
	orders, err := a.listen("gRPC", c.GRPCPort)
	if err != nil {
		return nil, err
	}
	pages, err := a.listen("pages", c.PagePort)
	if err != nil {
		return nil, err
	}
	a.pageAddress = pages.Addr().String()
	a.group, err = member.Join(a.alive, member.Config{
		Name: c.Host, Role: trust.RoleAgent, Bind: netip.AddrPortFrom(c.Advertise, c.GossipPort),
		Seeds: c.Join, Key: c.Key, Logger: a.logger,
		Meta: member.Meta{GRPC: orders.Addr().String(), Version: c.Version},
	})
	if err != nil {
		return nil, err
	}
	a.closeLast("gossip", a.group.Close)
	a.coordinators = &coordinators{
		credentials: c.Credentials, group: a.group, patience: a.timing.Report, open: map[string]link{},
	}
	a.closeLast("connections", a.coordinators.close)
	a.running.Go(a.stayConnected)

	// Sessions are there again before an order can ask for them.
	for _, e := range entries {
		a.takeUp(e)
	}
	a.running.Go(a.tidy)
	a.servePages(pages)
	a.serveOrders(orders)
	if err := a.serveSockets(); err != nil {
		return nil, err
	}
	a.logger.Info("serving", keyAddress, orders.Addr().String(), "pages", a.pageAddress, "recovered", len(entries))
	return a, nil
}

// listen takes a port on this host's address.
func (a *Agent) listen(what string, port uint16) (net.Listener, error) {
	address := net.JoinHostPort(a.config.Advertise.String(), strconv.Itoa(int(port)))
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listening for %s: %w", what, err)
	}
	a.closeLast(what+" listener", func() error {
		if err := l.Close(); !errors.Is(err, net.ErrClosed) {
			return err
		}
		return nil
	})
	return l, nil
}

// closeLast notes a step of Close; the last one noted is done first.
func (a *Agent) closeLast(what string, do func() error) {
	a.closing = append(a.closing, closer{what, do})
}

// Shutdown stops as politely as ctx allows. What may be given up is, and its
// process runs on here; what only the log can decide stays frozen, for the
// next agent on this host; what has arrived runs on.
func (a *Agent) Shutdown(ctx context.Context) error {
	a.admitNoMore()
	quiet := make(chan struct{})
	go func() {
		defer close(quiet)
		a.sessions.Wait()
		a.awaitReports(ctx)
	}()
	var err error
	select {
	case <-quiet:
	case <-ctx.Done():
		err = fmt.Errorf("stopping: what has not been resumed in time is left to the next agent: %w", ctx.Err())
	}
	return errors.Join(err, a.group.Leave(ctx), a.Close())
}

// leaves ends when this agent waits no longer for the log's word, or done is called.
// One that is to stop waits for a while: signals that wait for a frozen copy cross
// when it is disposed of, and the next agent has no connection for them.
func (a *Agent) leaves() (left context.Context, done func()) {
	left, leave := context.WithCancel(a.alive)
	unhook := context.AfterFunc(a.stopping, func() {
		defer leave()
		timer := time.NewTimer(a.timing.Decided)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-left.Done():
		}
	})
	return left, func() {
		unhook()
		leave()
	}
}

// awaitReports waits until the ends of sessions have been heard of.
func (a *Agent) awaitReports(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 2*a.timing.Report)
	defer cancel()
	for _, s := range a.all() {
		if e := s.is(); e.Phase != phaseOver || e.Announced {
			continue
		}
		select {
		case <-s.aborted:
		case <-s.committed:
		case <-s.dropped:
		case <-ctx.Done():
			return
		}
	}
}

// Close ends the agent without a word to anybody and without touching any
// process, as a crash would.
func (a *Agent) Close() error {
	// In this order: a session that saw that it is to stop, and not yet that it
	// is dead, would give up in good order.
	a.die()
	a.admitNoMore()
	var errs []error
	for _, c := range slices.Backward(a.closing) {
		if err := c.do(); err != nil {
			errs = append(errs, fmt.Errorf("closing %s: %w", c.what, err))
		}
	}
	a.closing = nil
	a.sessions.Wait()
	a.running.Wait()
	return errors.Join(errs...)
}

// admitNoMore has no session begin any more after it has returned.
func (a *Agent) admitNoMore() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.stop()
}

// GRPCAddress is where orders are taken.
func (a *Agent) GRPCAddress() string {
	m, _ := a.group.Member(trust.RoleAgent, a.config.Host)
	return m.Meta.GRPC
}

// GossipAddress is what others may join.
func (a *Agent) GossipAddress() string { return a.group.Address().String() }

// stayConnected keeps connections to the coordinators that gossip knows.
func (a *Agent) stayConnected() {
	for {
		changed := a.group.Changed()
		a.coordinators.warm()
		select {
		case <-changed:
		case <-a.alive.Done():
			return
		}
	}
}

// all returns the sessions there are.
func (a *Agent) all() []*session {
	a.mu.Lock()
	defer a.mu.Unlock()
	var all []*session
	for _, s := range a.known {
		all = append(all, s)
	}
	return all
}

// addLocked adds a session and starts its goroutines.
func (a *Agent) addLocked(s *session, drive func()) {
	a.known[s.entry.Migration] = s
	if s.entry.Phase != phaseOver || !s.entry.Announced {
		a.running.Go(s.report)
	}
	a.sessions.Go(drive)
}

// takeUp goes on with a session that an earlier agent has left.
func (a *Agent) takeUp(e entry) {
	s := a.newSession(e)
	s.recovered = true
	close(s.reserved)
	s.failed = errors.New("the agent was lost and with it the reservation")
	s.logger.Info("recovering", keyPhase, string(e.Phase), keyOutcome, string(e.Outcome))
	if e.Side == migrate.SideSource && e.Phase != phaseOver {
		a.addresses.markSilent(e.Addresses)
	}
	drive := (&incoming{session: s}).resumeRecovered
	switch {
	case e.Phase == phaseOver:
		close(s.over)
		if !e.Announced {
			s.standing(ended(&e))
		}
		drive = func() {}
	case e.Side == migrate.SideSource:
		drive = (&outgoing{session: s}).resumeRecovered
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.addLocked(s, drive)
}

// forget drops a session that is over.
func (a *Agent) forget(s *session) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	id := s.is().Migration
	if a.known[id] != s {
		return nil // forgotten already
	}
	if err := s.drop(); err != nil {
		return err
	}
	delete(a.known, id)
	return nil
}

// tidy forgets what the coordinators never told it to, because their record
// has ended without this host, and bars that nothing can run into any more.
func (a *Agent) tidy() {
	tick := time.NewTicker(a.timing.Keep)
	defer tick.Stop()
	old := map[*session]bool{} // those that were over at the last look
	for {
		select {
		case <-a.alive.Done():
			return
		case now := <-tick.C:
			a.mu.Lock()
			for id, b := range a.barred {
				if now.Sub(b.since) > a.timing.Keep {
					delete(a.barred, id)
				}
			}
			a.mu.Unlock()
		}
		over := map[*session]bool{}
		for _, s := range a.all() {
			e := s.is()
			if e.Phase != phaseOver {
				continue
			}
			over[s] = true
			if !old[s] {
				continue
			}
			resp, err := a.decision(a.alive, e)
			if err != nil || resp.GetKnown() && !migrate.State(resp.GetState()).Final() {
				continue
			}
			if err := a.forget(s); err != nil {
				s.logger.Error("forgetting", keyError, err)
			}
		}
		old = over
	}
}

// sweep takes away what an agent that died has left of migrations that were over. That is
// no reason not to start: others may wait.
func (a *Agent) sweep(entries []entry) {
	var leaving []json.RawMessage
	var arriving []string
	for _, e := range entries {
		switch {
		case e.Outcome != "":
		case e.Side == migrate.SideTarget:
			arriving = append(arriving, e.Migration)
		case e.Plan != nil:
			leaving = append(leaving, e.Plan)
		}
	}
	if err := a.config.Source.Sweep(leaving, arriving); err != nil {
		a.logger.Warn("taking away what is left of earlier migrations", keyError, err)
	}
}
