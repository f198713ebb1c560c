package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/pagurus-project/pagurus/coordinator/member"
	"github.com/pagurus-project/pagurus/trust"
)

// Config is what an agent needs to know.
type Config struct {
	Host      string     // of this host, for ever
	Advertise netip.Addr // where the others reach it, and where it listens
	// Ports, of which zero takes a free one.
	GRPCPort, PagePort, GossipPort uint16
	Join                           []string // host:port of other members' gossip
	Key                            []byte   // of gossip, member.KeyBytes long

	Credentials *trust.Credentials // of the role agent and this host
	// Sockets are paths of unix sockets that pass the coordinators' HTTP API
	// on to whoever may open them, in this agent's name.
	Sockets []string
	// StateDir holds the journal. It has to go with the next boot, as /run does.
	StateDir string

	// The engines, which Validate does not ask for: looking at the machine for
	// them comes after looking at the configuration.
	Source Source
	Target Target
	// Addresses puts service addresses on this host.
	Addresses Addresses
	// Guests is how connections live on other hosts than their addresses.
	Guests Guests

	Timing  Timing
	Version string
	Logger  *slog.Logger
}

// Timing is how long the agent waits for what.
type Timing struct {
	Repeat   time.Duration // between two reports of the same thing
	Report   time.Duration // for one coordinator's answer to a report
	Yield    time.Duration // at the destination, before a failure is reported: the source knows better why
	Greeting time.Duration // for a page connection to say what it is about
	Reserved time.Duration // for a reservation's page connection
	Decided  time.Duration // for the log's word, when it is to stop
	Undo     time.Duration // for one try to resume, run, release or dispose
	RetryMin time.Duration // between two tries, at first
	RetryMax time.Duration // and later
	Keep     time.Duration // what is over, before it is asked whether it is still needed
}

// DefaultTiming is for hosts on one network.
func DefaultTiming() Timing {
	return Timing{
		Repeat:   250 * time.Millisecond,
		Report:   time.Second,
		Yield:    time.Second,
		Greeting: 5 * time.Second,
		Reserved: 30 * time.Second,
		Decided:  5 * time.Second,
		Undo:     30 * time.Second,
		RetryMin: 50 * time.Millisecond,
		RetryMax: 2 * time.Second,
		Keep:     10 * time.Minute,
	}
}

// pause is the time before the n-th repetition, counted from zero.
func (t Timing) pause(n int) time.Duration {
	d := t.RetryMin
	for range n {
		if d *= 2; d >= t.RetryMax {
			return t.RetryMax
		}
	}
	return d
}

// Validate reports everything that is missing or contradicts itself.
func (c Config) Validate() error {
	var errs []error
	if c.Credentials == nil {
		errs = append(errs, errors.New("credentials are needed"))
	} else if want := (trust.Identity{Role: trust.RoleAgent, Name: c.Host}); c.Credentials.Self() != want {
		errs = append(errs, fmt.Errorf("the certificate is of %s, and the configuration of %s", c.Credentials.Self(), want))
	}
	if !c.Advertise.IsValid() || c.Advertise.IsUnspecified() {
		errs = append(errs, errors.New("advertise needs the IP address at which the others reach this host"))
	}
	if len(c.Join) == 0 {
		errs = append(errs, errors.New("join needs the gossip address of at least one coordinator"))
	}
	if len(c.Key) != member.KeyBytes {
		errs = append(errs, fmt.Errorf("the gossip key has %d bytes instead of %d", len(c.Key), member.KeyBytes))
	}
	if !filepath.IsAbs(c.StateDir) {
		errs = append(errs, fmt.Errorf("state_dir %q is not an absolute path", c.StateDir))
	}
	for _, s := range c.Sockets {
		if !filepath.IsAbs(s) {
			errs = append(errs, fmt.Errorf("socket %q is not an absolute path", s))
		}
	}
	return errors.Join(errs...)
}
