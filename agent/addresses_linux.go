package agent

import (
	"errors"
	"net/netip"

	"github.com/pagurus-project/pagurus/agent/address"
)

// HostAddresses puts service addresses on the host that the calling process is on.
func HostAddresses() Addresses { return hostAddresses{} }

type hostAddresses struct{}

func (hostAddresses) Check(p netip.Prefix) (unfit string, err error) {
	err = address.Check(p)
	if errors.Is(err, address.ErrNoNetwork) || errors.Is(err, address.ErrPresent) {
		return err.Error(), nil
	}
	return "", err
}

func (hostAddresses) Put(p netip.Prefix) (bool, error) { return address.Put(p) }
func (hostAddresses) Remove(a netip.Addr) error        { return address.Remove(a) }
func (hostAddresses) Announce(p netip.Prefix) error    { return address.Announce(p) }
func (hostAddresses) Speak(name string) error          { return address.Speak(name) }

func (hostAddresses) Silence(name string, addresses []netip.Addr) error {
	return address.Silence(name, addresses)
}
