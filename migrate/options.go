package migrate

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"time"
)

// Compression names how page content is compressed on the wire.
type Compression string

const (
	CompressAuto Compression = "auto" // by measurement of link and cores
	CompressNone Compression = "none"
	CompressS2   Compression = "s2"
	CompressZstd Compression = "zstd"
)

// Defaults and bounds of Options.
const (
	DefaultMaxDowntime = 50 * time.Millisecond
	DefaultMaxRounds   = 30
	maxMaxDowntime     = time.Hour
	maxMaxRounds       = 1000
	maxWithAddresses   = 100
)

// Options are what a user may choose for one migration.
type Options struct {
	// MaxDowntime steers when to freeze: as soon as the last round is
	// estimated to fit. With Strict it is a promise: a migration that cannot
	// keep it aborts. Zero means DefaultMaxDowntime; at most an hour.
	MaxDowntime time.Duration `json:"max_downtime_ns,omitempty"`
	// BandwidthBytes limits the page stream, in bytes a second; zero: no limit.
	BandwidthBytes uint64      `json:"bandwidth_bytes,omitempty"`
	Compress       Compression `json:"compress,omitempty"`
	// MaxRounds bounds the pre-copy rounds; zero means DefaultMaxRounds, at most 1000.
	MaxRounds int  `json:"max_rounds,omitempty"`
	Strict    bool `json:"strict,omitempty"`
	// Rehearse goes through everything up to PREPARED and then aborts.
	Rehearse bool `json:"rehearse,omitempty"`
	// Verify compares all of the memory on both sides before PREPARED.
	Verify bool `json:"verify,omitempty"`
	// AllowDegraded accepts what would be restored with less than it had.
	AllowDegraded bool `json:"allow_degraded,omitempty"`
	// WithAddresses are service addresses of the source that go along though no
	// socket of the process is bound to them; at most 100.
	WithAddresses []netip.Addr `json:"with_addresses,omitempty"`
}

// Equal reports whether two users have asked for the same.
func (o Options) Equal(other Options) bool { return reflect.DeepEqual(o, other) }

// WithDefaults fills in what is zero.
func (o Options) WithDefaults() Options {
	if o.MaxDowntime == 0 {
		o.MaxDowntime = DefaultMaxDowntime
	}
	if o.MaxRounds == 0 {
		o.MaxRounds = DefaultMaxRounds
	}
	if o.Compress == "" {
		o.Compress = CompressAuto
	}
	return o
}

// Validate reports all values that are out of range.
func (o Options) Validate() error {
	var errs []error
	if o.MaxDowntime < 0 || o.MaxDowntime > maxMaxDowntime {
		errs = append(errs, fmt.Errorf("maximum downtime %v is not between 0 and %v", o.MaxDowntime, maxMaxDowntime))
	}
	if o.MaxRounds < 0 || o.MaxRounds > maxMaxRounds {
		errs = append(errs, fmt.Errorf("maximum of rounds %d is not between 0 and %d", o.MaxRounds, maxMaxRounds))
	}
	if len(o.WithAddresses) > maxWithAddresses {
		errs = append(errs, fmt.Errorf("%d addresses to go along are more than %d", len(o.WithAddresses), maxWithAddresses))
	}
	for _, a := range o.WithAddresses {
		if !a.IsValid() || a.Zone() != "" || a.Is4In6() {
			errs = append(errs, fmt.Errorf("%q cannot be a service address", a))
		}
	}
	switch o.Compress {
	case "", CompressAuto, CompressNone, CompressS2, CompressZstd:
	default:
		errs = append(errs, fmt.Errorf("compression %q is none of auto, none, s2, zstd", o.Compress))
	}
	return errors.Join(errs...)
}
