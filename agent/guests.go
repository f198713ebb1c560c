package agent

import (
	"context"
	"net/netip"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	migratev1 "github.com/pagurus-project/pagurus/proto/migrate/v1"
)

// A Connection is one of TCP. Local is the end that has moved.
type Connection struct{ Local, Remote netip.AddrPort }

// PassedOn are connections that left with a migration, and whose packets this host passes on.
type PassedOn struct {
	Migration   string
	Connections []Connection
	To          []netip.Addr // of the host that they are passed on to
}

// Guests is how connections live on other hosts than their addresses. It is all in the kernel,
// and outlives the agent.
type Guests interface {
	PassedOn() ([]PassedOn, error)
	// Here are connections at other hosts' addresses.
	Here() ([]Connection, error)
	// Addresses are this host's own, the best one first.
	Addresses(best netip.Addr) ([]netip.Addr, error)
	// PassOn leads connections that are passed on to the host with these addresses; with none
	// it ends that. It may be repeated.
	PassOn(connections []Connection, to []netip.Addr) error
}

// ListGuests tells of connections that live elsewhere, and of others' that live here.
func (o orders) ListGuests(context.Context, *migratev1.ListGuestsRequest) (*migratev1.ListGuestsResponse, error) {
	guests := o.agent.config.Guests
	passed, err := guests.PassedOn()
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	here, err := guests.Here()
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	own, err := guests.Addresses(o.agent.config.Advertise.Unmap())
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	resp := &migratev1.ListGuestsResponse{Guests: connectionsToProto(here), Addresses: textsOf(own)}
	for _, p := range passed {
		resp.Passed = append(resp.Passed, &migratev1.Passed{Migration: p.Migration, Connections: connectionsToProto(p.Connections), To: textsOf(p.To)})
	}
	return resp, nil
}

// PassOn tells where connections live by now.
func (o orders) PassOn(_ context.Context, req *migratev1.PassOnRequest) (*migratev1.PassOnResponse, error) {
	var connections []Connection
	for _, c := range req.GetConnections() {
		local, err := netip.ParseAddrPort(c.GetLocal())
		if err != nil {
			return nil, status.Error(codes.InvalidArgument, err.Error())
		}
		remote, err := netip.ParseAddrPort(c.GetRemote())
		if err != nil {
			return nil, status.Error(codes.InvalidArgument, err.Error())
		}
		connections = append(connections, Connection{local, remote})
	}
	var to []netip.Addr
	for _, text := range req.GetAddresses() {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return nil, status.Error(codes.InvalidArgument, err.Error())
		}
		to = append(to, a)
	}
	if err := o.agent.config.Guests.PassOn(connections, to); err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	if len(to) == 0 {
		o.agent.logger.Info("connections have ended, or are passed on by others", "connections", len(connections))
	} else {
		o.agent.logger.Info("connections are passed on to another host", "connections", len(connections), keyAddress, to[0].String())
	}
	return &migratev1.PassOnResponse{}, nil
}

func connectionsToProto(list []Connection) []*migratev1.Connection {
	var all []*migratev1.Connection
	for _, c := range list {
		all = append(all, &migratev1.Connection{Local: c.Local.String(), Remote: c.Remote.String()})
	}
	return all
}

func textsOf(list []netip.Addr) []string {
	var all []string
	for _, a := range list {
		all = append(all, a.String())
	}
	return all
}
