package source

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/migrate/freezer"
	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/migrate/resource"
	"github.com/pagurus-project/pagurus/migrate/wire"
	"github.com/pagurus-project/pagurus/pageserver"
	"github.com/pagurus-project/pagurus/tcprepair/hold"
)

// Config says what is to be moved.
type Config struct {
	Migration string // names the control group; no path separators
	Epoch     uint64
	PID       int
	Options   migrate.Options
	Token     []byte // which the destination expects
	// Addresses are the service addresses that go along; of an inspection, those of
	// the host, from which Inspect chooses.
	Addresses []netip.Prefix
	// Save keeps the plan by which a later Recover undoes what was done. It is
	// called again before each step that has to be undone.
	Save func(Plan) error
}

func (c *Config) validate() error {
	if c.Migration == "" || filepath.Base(c.Migration) != c.Migration {
		return fmt.Errorf("%q cannot name a control group", c.Migration)
	}
	if c.Save == nil {
		return errors.New("no place to save the plan")
	}
	return c.Options.Validate()
}

// Events is who is told of a migration while Run runs.
type Events interface {
	// Progress is called a few times a second, from another goroutine.
	Progress(migrate.Progress)
	// Frozen is called right after the process was stopped for good. It must
	// not block.
	Frozen()
	// Unfrozen is called when it goes on after that, to be stopped once more.
	Unfrozen()
	// Promise is called when the destination is prepared and before Run returns
	// without an error. Its error must mean that nothing was promised.
	Promise(Measured) error
}

// Measured is what a migration has cost so far.
type Measured struct {
	Rounds    []migrate.Round
	PhasesMS  map[string]float64 // by the keys of migrate.Report
	Downtime  time.Duration      // from the first thread stopped to the arrival of the state
	Bytes     uint64             // page content, uncompressed
	WireBytes uint64
}

// A Migration is one attempt to move a process away.
type Migration struct {
	host      *Host
	config    Config
	recovered bool // no more is known than the plan says

	mu        sync.Mutex // one method at a time; guards everything below
	plan      Plan
	group     freezer.Group
	grouped   bool // the group may exist
	processes []*process
	dump      *resource.TreeDump
	objects   []*object // in the order of the image
	memory    *memory

	conn   net.Conn
	sender *pageserver.Sender
	trip   time.Duration // to the destination and back

	hold       *hold.Hold // nil: there is none
	begun      chan begun // of it, while that goes on beside something else; nil otherwise
	closing    bool       // the program has closed connections just before the freeze
	forwarding *hold.Hold // what became of it
	staying    *hold.Hold // for connections at addresses that stay; nil: there are none
	passing    bool       // what comes for them is passed on

	resuming bool                // the process runs on here, or is about to
	waiting  *image.AcceptQueues // what waited in listeners, and was accepted for the destination

	image    *image.Image // taken at the freeze
	sums     *wire.Verify // of all memory, since it stands still; nil: not yet
	repairs  int          // how often pages were sent again
	frozen   time.Time    // when the first thread was stopped for good; zero: none was
	still    bool         // all threads were
	promised bool
	over     bool // resumed or disposed of
	resumed  Resumed
	caught   time.Time // of one that was recovered: when its processes were first stopped
	left     time.Time // when its control group was first to be left
	killing  bool      // it is being disposed of

	gauges gauges
}

// gauges are what others may look at while the migration runs.
type gauges struct {
	mu       sync.Mutex
	measured Measured
	pace     pace
	round    uint32 // the present one
	pages    uint64 // that it has to carry
}

// Measured tells what the migration has cost so far. It may be called at any time.
func (m *Migration) Measured() Measured {
	m.gauges.mu.Lock()
	defer m.gauges.mu.Unlock()
	c := m.gauges.measured
	c.Rounds, c.PhasesMS = slices.Clone(c.Rounds), maps.Clone(c.PhasesMS)
	return c
}

// spent notes how long a phase took.
func (m *Migration) spent(phase string, took time.Duration) {
	m.gauges.mu.Lock()
	defer m.gauges.mu.Unlock()
	m.gauges.measured.PhasesMS[phase] += milliseconds(took)
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// bootClock is a clock that goes on while the machine sleeps and that the next
// agent will read too.
func bootClock() (int64, error) {
	var now unix.Timespec
	err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now)
	return now.Nano(), err
}

// Start checks that the process is there. Nothing is done to it yet.
func (h *Host) Start(ctx context.Context, c Config) (*Migration, error) {
	c.Options = c.Options.WithDefaults()
	if err := c.validate(); err != nil {
		return nil, err
	}
	if findings := h.refuse(c.PID); len(findings) > 0 {
		return nil, fmt.Errorf("%v", findings[0])
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	p, err := openProcess(h.config.CgroupRoot, c.PID)
	if err != nil {
		return nil, err
	}
	m := &Migration{
		host: h, config: c,
		plan: Plan{
			Migration: c.Migration, Epoch: c.Epoch,
			Processes: []PlanProcess{{PID: c.PID, StartTime: p.start, Origin: p.origin.Dir()}},
		},
		group:     p.origin.Child(groupPrefix + c.Migration),
		processes: []*process{p},
		dump:      h.newDump(c.Options.AllowDegraded),
		memory:    &memory{processes: make(map[pageserver.SpaceID]*process), objects: make(map[pageserver.SpaceID]*object)},
	}
	m.dump.Addresses = c.Addresses
	m.gauges.measured.PhasesMS = make(map[string]float64)
	m.gauges.pace = pace{
		allowed: c.Options.MaxDowntime, maxRounds: c.Options.MaxRounds,
		fixed: time.Duration(h.fixed.Load()),
	}
	return m, nil
}

// groupPrefix begins the names of our control groups.
const groupPrefix = "pagurus-"

func (m *Migration) save() error {
	if err := m.config.Save(m.plan); err != nil {
		return fmt.Errorf("saving the plan: %w", err)
	}
	return nil
}

func (m *Migration) pids() []int {
	all := make([]int, len(m.processes))
	for i, p := range m.processes {
		all[i] = p.pid
	}
	return all
}

// checkTree reports that the tree is not what it was.
func (m *Migration) checkTree() error {
	for _, p := range m.processes {
		if err := p.check(); err != nil {
			return err
		}
	}
	members, err := m.group.Processes()
	if err != nil {
		return err
	}
	for _, pid := range members {
		if !slices.Contains(m.pids(), pid) {
			return fmt.Errorf("%w: it has started process %d", ErrProcess, pid)
		}
	}
	return nil
}

// blocked turns blockers that were found after preflight into an error.
func (m *Migration) blocked() error {
	if len(m.dump.Blockers) == 0 {
		return nil
	}
	return &BlockedError{slices.Compact(slices.Clone(m.dump.Blockers))}
}

// A BlockedError says that the process has got something since preflight that
// cannot be moved.
type BlockedError struct{ Blockers []migrate.Finding }

func (e *BlockedError) Error() string { return "the process cannot move: " + e.Blockers[0].String() }
