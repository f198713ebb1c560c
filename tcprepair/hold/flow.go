package hold

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
)

// A Flow is what is held: the TCP segments from one peer to one local address and
// port, or, without a peer, from all of them, and, without a port, to all ports of
// the address. In that last case UDP's datagrams are held as well, fragments included;
// ICMP and all other protocols never are.
type Flow struct {
	Local  netip.AddrPort
	Remote netip.AddrPort // not valid: anybody
}

// Config says what is held where.
type Config struct {
	// Name distinguishes holds on one host: it is in the names of the firewall's
	// tables, and of the devices.
	Name    string
	Devices []string // through which the packets come in
	Flows   []Flow
	// Peers says that flows with peers follow (BeginFlows).
	Peers bool
}

// Names of devices have 15 characters at most (IFNAMSIZ), of which we use some.
var namePattern = regexp.MustCompile(`^[a-z0-9]{1,10}$`)

// ErrInvalid says that a configuration makes no sense.
var ErrInvalid = errors.New("invalid hold")

// NameOf makes a name of something longer.
func NameOf(what string) string {
	sum := sha256.Sum256([]byte(what))
	return hex.EncodeToString(sum[:5])
}

func (c *Config) validate() error {
	if !namePattern.MatchString(c.Name) {
		return fmt.Errorf("%w: its name is %q", ErrInvalid, c.Name)
	}
	for _, f := range c.Flows {
		local, remote := f.Local.Addr().Unmap(), f.Remote.Addr().Unmap()
		if !f.Local.IsValid() || f.Local.Port() == 0 && f.Remote.IsValid() || f.Remote.IsValid() && local.Is4() != remote.Is4() {
			return fmt.Errorf("%w: from %v to %v", ErrInvalid, f.Remote, f.Local)
		}
	}
	return nil
}
