package source

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pagurus-project/pagurus/migrate/dirty"
	"github.com/pagurus-project/pagurus/migrate/freezer"
	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/migrate/procfs"
	"github.com/pagurus-project/pagurus/migrate/resource"
	"github.com/pagurus-project/pagurus/tcprepair"
	"github.com/pagurus-project/pagurus/tcprepair/timewait"
)

// HostConfig says on which host migrations start.
type HostConfig struct {
	// CgroupRoot is where the cgroup v2 hierarchy is mounted; empty: to be found.
	CgroupRoot string
	// Own reports whether a process is the agent's own or another daemon of
	// ours, which are not to be moved.
	Own func(pid int) bool
}

// A Host is what all migrations that leave this host share.
type Host struct {
	config  HostConfig
	image   image.Host
	readers resource.Readers
	digests *resource.Digests
	// Slow says why flags of mappings have to be read from smaps, or all memory has
	// to be compared, either of which makes freezes of large processes longer, or
	// why relative time-outs start over; nil: none of it is so.
	Slow error

	timeWaits *timewait.Lister // nil: this kernel does not show them

	losesWrites bool // soft-dirty bits do, which are what there is (package dirty)

	// What goes on for a while after a migration has ended, until alive ends.
	background sync.WaitGroup
	alive      context.Context
	stop       context.CancelFunc
	mu         sync.Mutex
	failed     error // guarded by mu

	fixed atomic.Int64 // what a freeze costs beside its pages, as learned; nanoseconds
}

// What a freeze is taken to cost beside its pages: before one has been seen,
// and at most. One slow freeze must not keep all later ones from being tried.
const (
	fixedAtFirst = 5 * time.Millisecond
	fixedAtMost  = 20 * time.Millisecond
)

// New looks at the machine. Its error says what the machine lacks.
func New(ctx context.Context, config HostConfig) (*Host, error) {
	h := &Host{config: config, digests: resource.NewDigests()}
	h.alive, h.stop = context.WithCancel(context.WithoutCancel(ctx))
	h.fixed.Store(int64(fixedAtFirst))
	kind, err := dirty.Detect()
	if err != nil {
		return nil, err
	}
	var loses error
	if kind == dirty.KindSoftDirty {
		if h.losesWrites, err = dirty.LosesWrites(); err != nil {
			return nil, fmt.Errorf("trying soft-dirty bits: %w", err)
		}
	}
	if h.losesWrites {
		loses = errors.New("this kernel's soft-dirty bits miss pages that were written, so all memory is compared while a process stands still")
	}
	if h.config.CgroupRoot == "" {
		if h.config.CgroupRoot, err = freezer.Mount(); err != nil {
			return nil, err
		}
	}
	if h.image, err = resource.LocalHost(ctx); err != nil {
		return nil, fmt.Errorf("looking at this host: %w", err)
	}
	var noFlags, noSleeps, noSockets, noDescriptors, noTimeWaits error
	h.readers.Flags, noFlags = procfs.NewFlagReader()
	h.readers.Sleeps, noSleeps = procfs.NewSleepReader()
	if h.readers.Sockets, noSockets = tcprepair.NewLayout(); noSockets == nil {
		h.readers.Descriptors, noDescriptors = procfs.NewDescriptorReader()
	}
	h.timeWaits, noTimeWaits = timewait.NewLister()
	h.Slow = errors.Join(noFlags, noSleeps, noSockets, noDescriptors, noTimeWaits, loses)
	_ = resource.CanFillListeners() // it takes a while the first time, which is not to be in a freeze
	return h, nil
}

// Close lets go of what is shared, and ends what goes on in the background. All
// migrations must have ended.
func (h *Host) Close() error {
	h.stop()
	h.background.Wait()
	return errors.Join(h.failed, h.readers.Flags.Close(), h.readers.Sleeps.Close(), h.readers.Descriptors.Close(), h.timeWaits.Close())
}

// persistently does something until it does not fail, or for some tries.
func (h *Host) persistently(do func() error) error {
	const tries, pause = 10, time.Second
	for try := 1; ; try++ {
		err := do()
		if err == nil || try == tries {
			return err
		}
		select {
		case <-h.alive.Done():
			return err
		case <-time.After(pause):
		}
	}
}

// inBackground does something that nobody waits for before Close, which tells if it has
// failed.
func (h *Host) inBackground(do func() error) {
	h.background.Go(func() {
		err := do()
		h.mu.Lock()
		defer h.mu.Unlock()
		h.failed = errors.Join(h.failed, err)
	})
}

// newDump starts taking the images of a tree.
func (h *Host) newDump(allowDegraded bool) *resource.TreeDump {
	d := resource.NewTreeDump(h.image, h.readers, h.digests)
	d.AllowDegraded = allowDegraded
	return d
}

// learn remembers what a freeze has cost beside its pages: half of what is new,
// half of what was known.
func (h *Host) learn(fixed time.Duration) {
	h.fixed.Store(min((h.fixed.Load()+int64(fixed))/2, int64(fixedAtMost)))
}

// ErrProcess says that the migration failed by what the process did itself: it
// exited, started another program or made a child.
var ErrProcess = errors.New("process changed under the migration")
