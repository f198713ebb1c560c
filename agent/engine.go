package agent

import (
	"context"
	"encoding/json"
	"net"
	"net/netip"
	"time"

	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/migrate/image"
)

// A Source is the engine's half that moves processes away from this host.
type Source interface {
	// Inspect reads what the tree below a process consists of. The process may
	// stand still for a moment, and is as before when Inspect returns; until then
	// the plan that was saved last undoes everything, as for a migration.
	Inspect(ctx context.Context, c SourceConfig) (Inspection, error)
	// Start makes a migration; the process has not been touched when it returns.
	Start(ctx context.Context, c SourceConfig) (Outgoing, error)
	// Recover takes up what an agent that died has left, by its last plan.
	Recover(ctx context.Context, plan json.RawMessage, save func(plan json.RawMessage) error) (Outgoing, error)
	// Sweep takes away what an agent that died has left of migrations that were over. Those
	// that are not have these plans, if they go away from here, or come here.
	Sweep(leaving []json.RawMessage, arriving []string) error
}

// An Inspection is what the source knows of a process tree.
type Inspection struct {
	Tree     []migrate.Process
	Blockers []migrate.Finding
	Warnings []migrate.Finding
	// Inventory is what the destination has to offer; nil if it is not known.
	Inventory *image.Image
}

// SourceConfig is what a migration away from here needs.
type SourceConfig struct {
	Migration string
	Epoch     uint64
	PID       int
	Options   migrate.Options
	Token     []byte
	// Addresses are the service addresses that go along; of a look, those of this
	// host, from which it chooses.
	Addresses []netip.Prefix
	// Save keeps a plan by which everything can be undone. It is called before
	// each step that a later plan undoes.
	Save func(plan json.RawMessage) error
}

// An Outgoing is a migration away from here. One goroutine at a time calls it.
type Outgoing interface {
	// Run moves the process up to where the destination could run it. It
	// returns nil with the process frozen, and promised unless the migration
	// is a rehearsal. After an error, Resume has to be called. One whose
	// plan was recovered cannot Run.
	Run(ctx context.Context, conn net.Conn, events SourceEvents) error
	// Measured is what was measured so far. Any goroutine may call it.
	Measured() migrate.Measured
	// Resume undoes everything: the process runs on as if nothing had
	// happened. It may be called in any state and again after an error.
	Resume(ctx context.Context) (Resumed, error)
	// Dispose ends the frozen copy, once the process runs at the destination.
	// It may be called again after an error.
	Dispose(ctx context.Context) error
}

// A BlockedError ends Run: the process has got something since preflight that
// cannot move.
type BlockedError struct {
	Blockers []migrate.Finding
	err      error
}

func (b *BlockedError) Error() string { return b.err.Error() }
func (b *BlockedError) Unwrap() error { return b.err }

// SourceEvents hear from a running migration. None of them blocks for long.
type SourceEvents interface {
	Progress(p migrate.Progress)
	// Frozen is called after the process has been stopped for good.
	Frozen()
	// Unfrozen is called when it goes on all the same, for a while.
	Unfrozen()
	// Promise is called when the destination is prepared. Once it has returned
	// nil the source is bound: only the log decides. With an error the
	// migration ends.
	Promise(m migrate.Measured) error
}

// Resumed is how a source ended that did not lose its process.
type Resumed struct {
	KilledAtSource bool          // somebody killed the copy while it was frozen
	Ended          bool          // it had ended by then
	Lost           string        // what the process does not have any more, for people
	Downtime       time.Duration // from the first thread stopped to the last one resumed; zero if it was never frozen
	PhasesMS       map[string]float64
}

// A Target is the engine's half that takes processes in.
type Target interface {
	// Check compares an inventory with this host and changes nothing.
	Check(ctx context.Context, inventory *image.Image, o migrate.Options) (blockers, warnings []migrate.Finding, err error)
	// Reserve makes the shell. With blockers or an error nothing is left behind.
	Reserve(ctx context.Context, c TargetConfig) (shell Incoming, blockers, warnings []migrate.Finding, err error)
	// Recover takes up the shell that an agent that died has left.
	Recover(ctx context.Context, plan json.RawMessage, save func(plan json.RawMessage) error) (Incoming, error)
}

// TargetConfig is what a shell needs.
type TargetConfig struct {
	Migration string
	Epoch     uint64
	Inventory *image.Image
	// InventoryRead is when its clocks were read at the source, by this host's
	// monotonic clock, but for the time on the way.
	InventoryRead time.Time
	Options       migrate.Options
	Save          func(plan json.RawMessage) error // as in SourceConfig
}

// An Incoming is a shell. One goroutine at a time calls it.
type Incoming interface {
	// Receive takes the process in from a connection whose greeting has been
	// read. It calls prepared when everything is built, announces it to the
	// source after that, and returns nil then; signals that the source
	// forwards later are taken in the background until Commit and the end of
	// the connection, or Release. After an error, Release has to be called.
	Receive(ctx context.Context, conn net.Conn, prepared func() error) error
	// Commit lets the process run. It may be called again after an error, and
	// for a shell that an earlier agent may have let run.
	Commit(ctx context.Context) (Ran, error)
	// Release removes the shell. It may be called in any state before Commit,
	// and again after an error.
	Release(ctx context.Context) error
}

// Ran is what came of a COMMIT.
type Ran struct {
	// NeverRan attests that the shell is gone and that no thread of it ever
	// executed an instruction of the program.
	NeverRan bool
	Detail   string
	Downtime time.Duration // from the source's last message to the last thread resumed; zero if it is not known
	PhasesMS map[string]float64
}
