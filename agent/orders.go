package agent

import (
	"context"
	"crypto/subtle"
	"errors"
	"net"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/migrate/image"
	migratev1 "github.com/pagurus-project/pagurus/proto/migrate/v1"
	"github.com/pagurus-project/pagurus/trust"
)

// serveOrders answers coordinators.
func (a *Agent) serveOrders(l net.Listener) {
	a.grpc = grpc.NewServer(
		grpc.Creds(credentials.NewTLS(a.config.Credentials.Server(trust.AllowRoles(trust.RoleCoordinator)))),
		grpc.MaxRecvMsgSize(migratev1.MaxMessageBytes),
		grpc.WaitForHandlers(true), // none acts after Close
	)
	migratev1.RegisterAgentServer(a.grpc, orders{agent: a})
	a.closeLast("gRPC", func() error { a.grpc.Stop(); return nil })
	a.running.Go(func() {
		if err := a.grpc.Serve(l); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			a.logger.Error("serving gRPC", keyError, err)
		}
	})
}

// orders is the service that coordinators call.
type orders struct {
	migratev1.UnimplementedAgentServer
	agent *Agent
}

var _ migratev1.AgentServer = orders{}

// attempt checks which one an order is about.
func attempt(ref *migratev1.Ref) error {
	if !idPattern.MatchString(ref.GetMigration()) || ref.GetEpoch() == 0 {
		return status.Errorf(codes.InvalidArgument, "%q epoch %d names no attempt of a migration", ref.GetMigration(), ref.GetEpoch())
	}
	return nil
}

// find returns the session that an order is about, or nil, and refuses an order
// that is older than it.
func (a *Agent) find(ref *migratev1.Ref) (*session, error) {
	if err := attempt(ref); err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.known[ref.GetMigration()]
	if s != nil {
		if e := s.is(); ref.GetEpoch() < e.Epoch {
			return nil, status.Errorf(codes.FailedPrecondition, "epoch %d of migration %s is older than %d", ref.GetEpoch(), e.Migration, e.Epoch)
		}
	}
	return s, nil
}

// admit takes a new session up, and its goroutine. If the migration has one
// already, same decides whether the order was only repeated: that session is
// returned then. Otherwise it belongs to an attempt that was overtaken: it is
// given up first.
func (a *Agent) admit(ctx context.Context, s *session, drive func(), same func(*session) bool) (*session, error) {
	for {
		old, err := a.admitOnce(s, drive, same)
		if err != nil || old == nil || old == s || same(old) {
			return old, err
		}
		old.hear(migrate.DecisionAbort, "a newer attempt has taken its place", 0)
		if err := old.await(ctx); err != nil {
			return nil, err
		}
		if err := a.forget(old); err != nil {
			return nil, status.Error(codes.Internal, err.Error())
		}
	}
}

// admitOnce returns s if it was taken up, and otherwise what is in its way.
func (a *Agent) admitOnce(s *session, drive func(), same func(*session) bool) (*session, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	e := s.entry
	if b := a.barred[e.Migration]; e.Epoch <= b.epoch {
		return nil, status.Errorf(codes.FailedPrecondition, "migration %s was aborted", e.Migration)
	}
	if old := a.known[e.Migration]; old != nil {
		o := old.is()
		switch {
		case e.Epoch < o.Epoch:
			return nil, status.Errorf(codes.FailedPrecondition, "epoch %d of migration %s is older than %d", e.Epoch, e.Migration, o.Epoch)
		case o.Side != e.Side:
			return nil, status.Errorf(codes.FailedPrecondition, "this host is the %s of migration %s", o.Side, e.Migration)
		case !same(old) && (o.Phase == phasePromised || o.Phase == phasePrepared):
			return nil, status.Errorf(codes.FailedPrecondition, "migration %s is %s in epoch %d: only the log decides", e.Migration, o.Phase, o.Epoch)
		}
		return old, nil
	}
	if a.stopping.Err() != nil {
		return nil, status.Error(codes.Unavailable, "the agent stops")
	}
	if busy := a.busyLocked(e.PIDs, e.Migration); busy != "" {
		return nil, status.Errorf(codes.FailedPrecondition, "process %d is in migration %s", e.PIDs[0], busy)
	}
	if err := a.journal.write(&s.entry); err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	a.addLocked(s, drive)
	return s, nil
}

// busyLocked returns the migration, other than except, that has its hands on
// one of the processes.
func (a *Agent) busyLocked(pids []int, except string) string {
	for id, s := range a.known {
		if e := s.is(); id != except && e.Phase != phaseOver && slices.ContainsFunc(pids, func(pid int) bool { return slices.Contains(e.PIDs, pid) }) {
			return id
		}
	}
	return ""
}

func (a *Agent) busy(pid int, except string) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.busyLocked([]int{pid}, except)
}

// Describe tells what the host is and has.
func (o orders) Describe(context.Context, *migratev1.DescribeRequest) (*migratev1.DescribeResponse, error) {
	resp, err := describe()
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	resp.Host, resp.AgentVersion = o.agent.config.Host, o.agent.config.Version
	for _, s := range o.agent.all() {
		if s.is().Phase != phaseOver {
			resp.Migrations++
		}
	}
	return resp, nil
}

// ListProcesses lists the processes that could be moved.
func (o orders) ListProcesses(context.Context, *migratev1.ListProcessesRequest) (*migratev1.ListProcessesResponse, error) {
	list, err := o.agent.processes()
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return &migratev1.ListProcessesResponse{Processes: processesToProto(list)}, nil
}

// Inspect looks at a process.
func (o orders) Inspect(ctx context.Context, req *migratev1.InspectRequest) (*migratev1.InspectResponse, error) {
	options, err := optionsOf(req.GetOptions())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if req.GetRef().GetMigration() != "" {
		if _, err := o.agent.find(req.GetRef()); err != nil {
			return nil, err
		}
		o.agent.journal.hold(holdInspecting)
	}
	service, err := prefixesOf(req.GetServiceAddresses())
	if err != nil {
		return nil, err
	}
	look, err := o.agent.inspect(ctx, int(req.GetPid()), req.GetRef().GetMigration(), service, options)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	resp := &migratev1.InspectResponse{
		Tree: processesToProto(look.Tree), Blockers: findingsToProto(look.Blockers), Warnings: findingsToProto(look.Warnings),
	}
	if look.Inventory != nil {
		for _, p := range look.Inventory.Addresses {
			resp.Addresses = append(resp.Addresses, p.String())
		}
		if resp.Inventory, err = look.Inventory.Encode(); err != nil {
			return nil, status.Error(codes.Internal, err.Error())
		}
		resp.InventoryAgeNs = max(time.Now().UnixNano()-look.Inventory.Clocks.Realtime, 0)
	}
	return resp, nil
}

// Reserve makes a shell, or only looks whether it could.
func (o orders) Reserve(ctx context.Context, req *migratev1.ReserveRequest) (*migratev1.ReserveResponse, error) {
	a := o.agent
	read := time.Now().Add(-time.Duration(max(req.GetInventoryAgeNs(), 0)))
	a.coordinators.preferCaller(ctx)
	options, err := optionsOf(req.GetOptions())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	inventory, err := image.Decode(req.GetInventory())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	unfit, err := a.addresses.blockers(inventory.Addresses)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	if req.GetCheckOnly() || len(unfit) > 0 {
		blockers, warnings, err := a.config.Target.Check(ctx, inventory, options)
		if err != nil {
			return nil, status.Error(codes.Internal, err.Error())
		}
		return &migratev1.ReserveResponse{Blockers: findingsToProto(append(unfit, blockers...)), Warnings: findingsToProto(warnings)}, nil
	}
	ref := req.GetRef()
	if err := attempt(ref); err != nil {
		return nil, err
	}
	if len(req.GetToken()) < minTokenBytes {
		return nil, status.Errorf(codes.InvalidArgument, "a token of %d bytes is shorter than %d", len(req.GetToken()), minTokenBytes)
	}
	s := a.newSession(entry{
		Migration: ref.GetMigration(), Epoch: ref.GetEpoch(), Side: migrate.SideTarget, PIDs: pidsOf(inventory),
		Peer: req.GetSourceHost(), Phase: phaseReserved, Addresses: inventory.Addresses,
	})
	s.token = req.GetToken()
	config := TargetConfig{
		Migration: ref.GetMigration(), Epoch: ref.GetEpoch(), Inventory: inventory, InventoryRead: read, Options: options, Save: s.save,
	}
	s, err = a.admit(ctx, s, (&incoming{session: s, config: config}).begin, func(old *session) bool {
		return old.is().Epoch == ref.GetEpoch() && subtle.ConstantTimeCompare(old.token, req.GetToken()) == 1
	})
	if err != nil {
		return nil, err
	}
	select {
	case <-s.reserved:
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	case <-a.alive.Done():
		return nil, status.Error(codes.Unavailable, "the agent stops")
	}
	if s.failed != nil {
		return nil, status.Error(codes.Internal, s.failed.Error())
	}
	return &migratev1.ReserveResponse{
		Blockers: findingsToProto(s.blockers), Warnings: findingsToProto(s.warnings), PageAddress: a.pageAddress,
	}, nil
}

func pidsOf(m *image.Image) []int {
	var pids []int
	for _, p := range m.Processes {
		pids = append(pids, p.PID)
	}
	return pids
}

// Start begins a migration away from here. Without a page address it only
// answers whether it has begun.
func (o orders) Start(ctx context.Context, req *migratev1.StartRequest) (*migratev1.StartResponse, error) {
	a, ref := o.agent, req.GetRef()
	a.coordinators.preferCaller(ctx)
	if req.GetPageAddress() == "" {
		s, err := a.find(ref)
		if err == nil && s == nil {
			err = status.Errorf(codes.NotFound, "migration %s is not known here", ref.GetMigration())
		}
		return &migratev1.StartResponse{}, err
	}
	if err := attempt(ref); err != nil {
		return nil, err
	}
	options, err := optionsOf(req.GetOptions())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if err := (trust.Identity{Role: trust.RoleAgent, Name: req.GetDestinationHost()}).Validate(); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "destination: %v", err)
	}
	if req.GetPid() < 2 {
		return nil, status.Errorf(codes.InvalidArgument, "PID %d cannot be moved", req.GetPid())
	}
	addresses, err := prefixesOf(req.GetAddresses())
	if err != nil {
		return nil, err
	}
	// A look at the process that is under way has to end first.
	free, err := a.looks.claim(ctx, int(req.GetPid()))
	if err != nil {
		return nil, status.FromContextError(err).Err()
	}
	defer free()
	s := a.newSession(entry{
		Migration: ref.GetMigration(), Epoch: ref.GetEpoch(), Side: migrate.SideSource, PIDs: []int{int(req.GetPid())},
		Peer: req.GetDestinationHost(), Phase: phaseRunning, Addresses: addresses,
	})
	out := &outgoing{session: s, pageAddress: req.GetPageAddress(), config: SourceConfig{
		Migration: ref.GetMigration(), Epoch: ref.GetEpoch(), PID: int(req.GetPid()), Options: options, Token: req.GetToken(),
		Addresses: addresses, Save: s.save,
	}}
	_, err = a.admit(ctx, s, out.begin, func(old *session) bool { return old.is().Epoch == ref.GetEpoch() })
	return &migratev1.StartResponse{}, err
}

// Decide carries the log's word out and answers what came of it.
func (o orders) Decide(ctx context.Context, req *migratev1.DecideRequest) (*migratev1.DecideResponse, error) {
	decision, err := decisionOf(req.GetDecision())
	if err != nil || decision == migrate.DecisionNone {
		return nil, status.Errorf(codes.InvalidArgument, "%v is no decision", req.GetDecision())
	}
	if err := attempt(req.GetRef()); err != nil {
		return nil, err
	}
	if decision == migrate.DecisionAbort {
		o.agent.bar(req.GetRef())
	}
	s, err := o.agent.find(req.GetRef())
	if err != nil {
		return nil, err
	}
	if s == nil {
		return &migratev1.DecideResponse{Outcome: migratev1.Outcome_OUTCOME_UNKNOWN}, nil
	}
	e := s.is()
	if decision == migrate.DecisionCommit && req.GetRef().GetEpoch() != e.Epoch {
		return nil, status.Errorf(codes.FailedPrecondition, "COMMIT of epoch %d, but migration %s is in epoch %d here",
			req.GetRef().GetEpoch(), e.Migration, e.Epoch)
	}
	s.hear(decision, req.GetReason(), req.GetAddressesIndex())
	if decision == migrate.DecisionCommit && e.Side == migrate.SideSource {
		return &migratev1.DecideResponse{}, nil // it stays frozen until it is disposed of
	}
	if err := s.await(ctx); err != nil {
		return nil, err
	}
	e = s.is()
	if decision == migrate.DecisionCommit && e.Outcome == migrate.OutcomeReleased {
		// It was removed before it could have run.
		e.Outcome = migrate.OutcomeNeverRan
	}
	return &migratev1.DecideResponse{
		Outcome: outcomeToProto(e.Outcome), Detail: e.Reason, DowntimeMs: e.DowntimeMS, PhasesMs: e.PhasesMS, Lost: e.Lost,
	}, nil
}

// bar forbids attempts that may still be on their way here.
func (a *Agent) bar(ref *migratev1.Ref) {
	a.mu.Lock()
	defer a.mu.Unlock()
	b := a.barred[ref.GetMigration()]
	a.barred[ref.GetMigration()] = barredRef{max(b.epoch, ref.GetEpoch()), time.Now()}
}

// Dispose ends the source's frozen copy.
func (o orders) Dispose(ctx context.Context, req *migratev1.DisposeRequest) (*migratev1.DisposeResponse, error) {
	s, err := o.find(req.GetRef())
	if err != nil {
		return nil, err
	}
	if err := s.orderDisposal(req.GetAddressesIndex()); err != nil {
		return nil, err
	}
	if err := s.await(ctx); err != nil {
		return nil, err
	}
	return &migratev1.DisposeResponse{}, nil
}

// Forget drops a session that is over.
func (o orders) Forget(_ context.Context, req *migratev1.ForgetRequest) (*migratev1.ForgetResponse, error) {
	s, err := o.find(req.GetRef())
	if err != nil {
		return nil, err
	}
	if e := s.is(); e.Phase != phaseOver {
		return nil, status.Errorf(codes.FailedPrecondition, "migration %s is %s on the %s, not over", e.Migration, e.Phase, e.Side)
	}
	if err := o.agent.forget(s); err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return &migratev1.ForgetResponse{}, nil
}

// find is Agent.find for an order that makes no sense without a session.
func (o orders) find(ref *migratev1.Ref) (*session, error) {
	s, err := o.agent.find(ref)
	if err == nil && s == nil {
		err = status.Errorf(codes.NotFound, "migration %s is not known here", ref.GetMigration())
	}
	return s, err
}
