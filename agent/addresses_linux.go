package agent

import (
	"context"
	"net/netip"

	"github.com/pagurus-project/pagurus/agent/address"
)

// HostAddresses puts service addresses on the host that the calling process is on.
func HostAddresses() Addresses { return hostAddresses{} }

type hostAddresses struct{}

func (hostAddresses) Check(p netip.Prefix) error       { return address.Check(p) }
func (hostAddresses) Put(p netip.Prefix) (bool, error) { return address.Put(p) }
func (hostAddresses) Remove(a netip.Addr) error        { return address.Remove(a) }

func (hostAddresses) Announce(ctx context.Context, p netip.Prefix) error {
	return address.Announce(ctx, p)
}
