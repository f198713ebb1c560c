package coordinator

import (
	"context"
	"errors"
	"fmt"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	migratev1 "github.com/pagurus-project/pagurus/proto/migrate/v1"
	"github.com/pagurus-project/pagurus/trust"
)

// serveGRPC answers agents, and other coordinators that pass their calls on.
func (s *Server) serveGRPC(l net.Listener) {
	allow := trust.AllowRoles(trust.RoleAgent, trust.RoleCoordinator)
	s.grpc = grpc.NewServer(grpc.Creds(credentials.NewTLS(s.config.Credentials.Server(allow))))
	migratev1.RegisterCoordinatorServer(s.grpc, agentCalls{server: s})
	s.closeLast("gRPC", func() error { s.grpc.Stop(); return nil })
	s.running.Go(func() {
		if err := s.grpc.Serve(l); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			s.fail(fmt.Errorf("serving gRPC: %w", err))
		}
	})
}

// agentCalls is the service that agents call.
type agentCalls struct {
	migratev1.UnimplementedCoordinatorServer
	server *Server
}

var _ migratev1.CoordinatorServer = agentCalls{}

func (a agentCalls) Report(ctx context.Context, req *migratev1.ReportRequest) (*migratev1.ReportResponse, error) {
	return pass(ctx, a.server, req, a.server.scheduler.Report, migratev1.CoordinatorClient.Report)
}

func (a agentCalls) Decision(ctx context.Context, req *migratev1.DecisionRequest) (*migratev1.DecisionResponse, error) {
	return pass(ctx, a.server, req, a.server.scheduler.Decision, migratev1.CoordinatorClient.Decision)
}

// pass answers a call if this server leads, and otherwise passes it on, once:
// a call that was passed on already is not passed on again, so that two servers
// that take each other for the leader do not keep it between them. There is no
// waiting for a leader here, since agents repeat their calls.
func pass[Req interface{ GetHost() string }, Resp any](ctx context.Context, s *Server, req Req,
	here func(context.Context, Req) (Resp, error),
	there func(migratev1.CoordinatorClient, context.Context, Req, ...grpc.CallOption) (Resp, error),
) (Resp, error) {
	var none Resp
	caller, err := callerOf(ctx)
	if err != nil {
		return none, err
	}
	// The coordinator that passes a call on has checked who made it.
	if caller.Role == trust.RoleAgent && caller.Name != req.GetHost() {
		return none, status.Errorf(codes.PermissionDenied, "%s cannot speak for %q", caller, req.GetHost())
	}
	if _, err := s.scheduler.Leading(); err == nil {
		return here(ctx, req)
	}
	leader, _ := s.log.Leader()
	if leader == "" || leader == s.config.Name || caller.Role == trust.RoleCoordinator {
		return none, status.Error(codes.Unavailable, "no coordinator leads at present")
	}
	client, err := s.conns.Coordinator(leader)
	if err != nil {
		return none, status.Error(codes.Unavailable, status.Convert(err).Message())
	}
	return there(client, ctx, req)
}

// callerOf is the identity that the other end of a call has proved.
func callerOf(ctx context.Context) (trust.Identity, error) {
	if p, ok := peer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(credentials.TLSInfo); ok {
			return trust.Peer(info.State)
		}
	}
	return trust.Identity{}, status.Error(codes.Unauthenticated, "no certificate")
}
