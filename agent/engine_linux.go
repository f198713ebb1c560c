package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/migrate/source"
	"github.com/pagurus-project/pagurus/migrate/target"
	"github.com/pagurus-project/pagurus/tcprepair/hold"
)

// Engines are the two halves of migrations on this machine.
type Engines struct {
	source *source.Host
	target *target.Host
	stop   func() // sweeping
}

// sweepInterval is how often the control groups of processes that arrived and
// are no longer here are removed.
const sweepInterval = 2 * time.Second

// NewEngines looks at the machine; its error says what the machine lacks.
// groups is the directory below which arrived processes get control groups, state one
// that goes with the next boot.
func NewEngines(ctx context.Context, groups, state string) (*Engines, error) {
	from, err := source.New(ctx, source.HostConfig{Own: OwnDaemon})
	if err != nil {
		return nil, err
	}
	to, err := target.New(ctx, groups, filepath.Join(state, "connections"))
	if err != nil {
		return nil, errors.Join(err, from.Close())
	}
	e := &Engines{source: from, target: to}
	e.stop = repeatedly(sweepInterval, to.Sweep)
	return e, nil
}

// Probe says what this machine lacks for the half of migrations that needs
// most of it. Nothing is left behind.
func Probe(ctx context.Context) error {
	if os.Geteuid() != 0 {
		return errors.New("it takes root to stop and rebuild processes: try again with sudo")
	}
	// A process that arrives goes on with the clocks that it had.
	if _, err := os.Stat("/proc/self/ns/time_for_children"); err != nil {
		return fmt.Errorf("no time namespaces, which need Linux 5.6 with CONFIG_TIME_NS: %w", err)
	}
	h, err := source.New(ctx, source.HostConfig{})
	if err != nil {
		return err
	}
	return h.Close()
}

// repeatedly does something now and from time to time, until the function that
// it returns is called.
func repeatedly(interval time.Duration, do func()) (stop func()) {
	stopped := make(chan struct{})
	var loop sync.WaitGroup
	loop.Go(func() {
		ticker := time.NewTicker(interval)
		defer ticker.Stop()
		for {
			do()
			select {
			case <-stopped:
				return
			case <-ticker.C:
			}
		}
	})
	return sync.OnceFunc(func() {
		close(stopped)
		loop.Wait()
	})
}

// Slow says why freezes of large processes take longer on this machine than
// they could; nil if they do not.
func (e *Engines) Slow() error { return e.source.Slow }

// Close lets go of what migrations share.
func (e *Engines) Close() error {
	e.stop()
	e.target.Close()
	return e.source.Close()
}

// Source is the half that processes leave by.
func (e *Engines) Source() Source { return sourceEngine{e.source} }

// Target is the half that processes arrive by.
func (e *Engines) Target() Target { return targetEngine{e.target} }

// planOf reads a plan back from the journal.
func planOf[P any](data json.RawMessage) (P, error) {
	var p P
	if err := json.Unmarshal(data, &p); err != nil {
		return p, fmt.Errorf("reading a plan back: %w", err)
	}
	return p, nil
}

// saver makes an engine's Save of a session's.
func saver[P any](save func(json.RawMessage) error) func(P) error {
	return func(p P) error {
		data, err := json.Marshal(p)
		if err != nil {
			return fmt.Errorf("saving a plan: %w", err)
		}
		return save(data)
	}
}

// sourceEngine is package source as this one sees it.
type sourceEngine struct{ host *source.Host }

var _ Source = sourceEngine{}

func (s sourceEngine) Inspect(ctx context.Context, c SourceConfig) (Inspection, error) {
	i, err := s.host.Inspect(ctx, configOf(c))
	if err != nil {
		return Inspection{}, err
	}
	return Inspection(*i), nil
}

func (s sourceEngine) Start(ctx context.Context, c SourceConfig) (Outgoing, error) {
	m, err := s.host.Start(ctx, configOf(c))
	if err != nil {
		return nil, err
	}
	return outgoingMigration{m}, nil
}

func configOf(c SourceConfig) source.Config {
	return source.Config{
		Migration: c.Migration, Epoch: c.Epoch, PID: c.PID, Options: c.Options, Token: c.Token,
		Addresses: c.Addresses, Save: saver[source.Plan](c.Save),
	}
}

func (s sourceEngine) Recover(ctx context.Context, plan json.RawMessage, save func(json.RawMessage) error) (Outgoing, error) {
	p, err := planOf[source.Plan](plan)
	if err != nil {
		return nil, err
	}
	m, err := s.host.Recover(ctx, p, saver[source.Plan](save))
	if err != nil {
		return nil, err
	}
	return outgoingMigration{m}, nil
}

func (s sourceEngine) Sweep(leaving []json.RawMessage, arriving []string) error {
	var keep []string
	for _, migration := range arriving {
		keep = append(keep, target.StrayName(migration))
	}
	for _, plan := range leaving {
		p, err := planOf[source.Plan](plan)
		if err != nil {
			return err
		}
		keep = append(keep, p.Hold, p.StayingHold)
	}
	names, err := hold.Names()
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		if !slices.Contains(keep, name) {
			errs = append(errs, hold.Remove(name))
		}
	}
	return errors.Join(errs...)
}

type outgoingMigration struct{ *source.Migration }

func (o outgoingMigration) Run(ctx context.Context, conn net.Conn, events SourceEvents) error {
	err := o.Migration.Run(ctx, conn, sourceEvents{events})
	if blocked, ok := errors.AsType[*source.BlockedError](err); ok {
		return &BlockedError{Blockers: blocked.Blockers, err: err}
	}
	return err
}

func (o outgoingMigration) Measured() migrate.Measured { return measuredOf(o.Migration.Measured()) }

func (o outgoingMigration) Resume(ctx context.Context) (Resumed, error) {
	r, err := o.Migration.Resume(ctx)
	return Resumed(r), err
}

type sourceEvents struct{ SourceEvents }

var _ source.Events = sourceEvents{}

func (e sourceEvents) Promise(m source.Measured) error { return e.SourceEvents.Promise(measuredOf(m)) }

func measuredOf(m source.Measured) migrate.Measured {
	return migrate.Measured{
		Rounds: m.Rounds, PhasesMS: m.PhasesMS, DowntimeMS: migrate.Milliseconds(m.Downtime), Bytes: m.Bytes, WireBytes: m.WireBytes,
	}
}

// targetEngine is package target as this one sees it.
type targetEngine struct{ host *target.Host }

var _ Target = targetEngine{}

func (t targetEngine) Check(ctx context.Context, inventory *image.Image, o migrate.Options) (blockers, warnings []migrate.Finding, err error) {
	return t.host.Check(ctx, inventory, o)
}

func (t targetEngine) Reserve(ctx context.Context, c TargetConfig) (shell Incoming, blockers, warnings []migrate.Finding, err error) {
	s, blockers, warnings, err := t.host.Reserve(ctx, target.Config{
		Migration: c.Migration, Inventory: c.Inventory, InventoryRead: c.InventoryRead, Options: c.Options, Save: saver[target.Plan](c.Save),
	})
	if err != nil || s == nil {
		return nil, blockers, warnings, err
	}
	return incomingShell{s}, blockers, warnings, nil
}

func (t targetEngine) Recover(ctx context.Context, plan json.RawMessage, save func(json.RawMessage) error) (Incoming, error) {
	p, err := planOf[target.Plan](plan)
	if err != nil {
		return nil, err
	}
	s, err := t.host.Recover(ctx, p, saver[target.Plan](save))
	if err != nil {
		return nil, err
	}
	return incomingShell{s}, nil
}

type incomingShell struct{ *target.Shell }

func (i incomingShell) Commit(ctx context.Context) (Ran, error) {
	r, err := i.Shell.Commit(ctx)
	return Ran(r), err
}
