package coordinator

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"

	"github.com/pagurus-project/pagurus/coordinator/member"
	"github.com/pagurus-project/pagurus/coordinator/replog"
	"github.com/pagurus-project/pagurus/coordinator/scheduler"
	"github.com/pagurus-project/pagurus/trust"
)

// Config is what a coordinator needs to know.
type Config struct {
	Name      string     // of this server, for ever; usually of its host
	Advertise netip.Addr // where the others reach it, and where it listens
	// Ports, of which zero takes a free one.
	GossipPort, RaftPort, GRPCPort, HTTPPort uint16
	// Expect is how many servers form a new cluster, the same on all of them.
	// Zero waits to be added to one that exists.
	Expect  int
	Join    []string // host:port of other members' gossip
	DataDir string
	Key     []byte // of gossip, member.KeyBytes long

	Credentials *trust.Credentials // of the role coordinator and this name
	// HTTPSocket, if set, is the path of a unix socket that serves the HTTP
	// API to whoever may open it, as an operator.
	HTTPSocket string

	Keep       int // settled migrations to remember; zero means DefaultKeep
	Timing     scheduler.Timing
	RaftTiming replog.Timing
	Version    string
	Logger     *slog.Logger
}

// DefaultKeep is the length of the history.
const DefaultKeep = 10_000

// Validate reports everything that is missing or contradicts itself.
func (c Config) Validate() error {
	var errs []error
	if c.Credentials == nil {
		errs = append(errs, errors.New("credentials are needed"))
	} else if want := (trust.Identity{Role: trust.RoleCoordinator, Name: c.Name}); c.Credentials.Self() != want {
		errs = append(errs, fmt.Errorf("the certificate is of %s, and the configuration of %s", c.Credentials.Self(), want))
	}
	if !c.Advertise.IsValid() || c.Advertise.IsUnspecified() {
		errs = append(errs, errors.New("advertise needs the IP address at which the others reach this server"))
	}
	if c.Expect < 0 || c.Expect > 0 && c.Expect%2 == 0 {
		errs = append(errs, fmt.Errorf("expect is %d: an odd number is needed, so that a majority can outvote the rest", c.Expect))
	}
	if c.Expect != 1 && len(c.Join) == 0 {
		errs = append(errs, fmt.Errorf("with expect = %d, join needs the addresses of other servers", c.Expect))
	}
	if c.DataDir == "" {
		errs = append(errs, errors.New("data_dir is needed"))
	}
	if len(c.Key) != member.KeyBytes {
		errs = append(errs, fmt.Errorf("the gossip key has %d bytes instead of %d", len(c.Key), member.KeyBytes))
	}
	return errors.Join(errs...)
}

// withDefaults fills in what is zero.
func (c Config) withDefaults() Config {
	if c.Keep == 0 {
		c.Keep = DefaultKeep
	}
	if c.Timing == (scheduler.Timing{}) {
		c.Timing = scheduler.DefaultTiming()
	}
	if c.RaftTiming == (replog.Timing{}) {
		c.RaftTiming = replog.DefaultTiming()
	}
	return c
}
