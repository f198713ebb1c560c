package target

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/migrate/freezer"
	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/migrate/resource"
)

// A Host takes processes in. Its methods may be called from any goroutine.
type Host struct {
	groups  freezer.Group // below which every arrived process has its own
	state   string        // a directory with a file for each migration: what is to be done at COMMIT
	entry   sync.Mutex    // held by who makes a group until there is somebody in it
	machine image.Host
	digests *resource.Digests

	// What goes on for a while after a process has arrived, until alive ends.
	background sync.WaitGroup
	alive      context.Context
	stop       context.CancelFunc
}

// New looks at the machine. groups is a directory of a cgroup2 file system,
// outside the group of the caller; in state is kept what is too much for a plan. Both
// are made if they are not there.
func New(ctx context.Context, groups, state string) (*Host, error) {
	if err := os.MkdirAll(groups, 0o755); err != nil {
		return nil, fmt.Errorf("making the control group of arriving processes: %w", err)
	}
	if err := os.MkdirAll(state, 0o700); err != nil {
		return nil, fmt.Errorf("making a directory for the state of connections: %w", err)
	}
	machine, err := resource.LocalHost(ctx)
	if err != nil {
		return nil, err
	}
	h := &Host{groups: freezer.At(groups), state: state, machine: machine, digests: resource.NewDigests()}
	h.alive, h.stop = context.WithCancel(context.WithoutCancel(ctx))
	return h, nil
}

// Close ends what goes on in the background. All migrations must have ended.
func (h *Host) Close() {
	h.stop()
	h.background.Wait()
}

// Check compares what a tree needs with what this host has. It changes nothing.
func (h *Host) Check(ctx context.Context, inventory *image.Image, o migrate.Options) (blockers, warnings []migrate.Finding, err error) {
	c := h.newCheck(ctx, inventory, o)
	c.CheckImage()
	for i := range inventory.Processes {
		for _, t := range inventory.Processes[i].Threads {
			if _, err := os.Stat(fmt.Sprintf("/proc/%d", t.TID)); err == nil {
				c.Block(migrate.CodePIDTaken, "end the process there, or choose another host", "%s", taken(t.TID, inventory.Processes[i].PID))
			}
		}
	}
	return c.Blockers, c.Warnings, nil
}

func (h *Host) newCheck(ctx context.Context, inventory *image.Image, o migrate.Options) *resource.Check {
	return &resource.Check{
		Findings: &resource.Findings{}, Ctx: ctx, Host: h.machine, Source: inventory.Host,
		AllowDegraded: o.AllowDegraded, Image: inventory, Digests: h.digests,
	}
}

// taken says who has the id of a thread of process pid.
func taken(tid, pid int) string {
	what := fmt.Sprintf("thread id %d of process %d", tid, pid)
	if tid == pid {
		what = fmt.Sprintf("PID %d", pid)
	}
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", tid))
	if err != nil {
		return what + " is in use there"
	}
	return fmt.Sprintf("%s is in use there, by %q", what, string(comm[:max(len(comm)-1, 0)]))
}

// Config says what is to be reserved.
type Config struct {
	Migration string // names the control group; no path separators
	Inventory *image.Image
	// InventoryRead is when its clocks were read at the source, by this host's
	// monotonic clock, but for the time that it was on its way.
	InventoryRead time.Time
	Options       migrate.Options
	// Save keeps the plan by which a later Recover finds what is left.
	Save func(Plan) error
}

// A Plan is what an agent that starts again has to know of a shell. It is
// written before what it says is done.
type Plan struct {
	Migration string `json:"migration"`
	Group     string `json:"group"`
	PIDs      []int  `json:"pids"`
	Prepared  bool   `json:"prepared"`  // everything is built, frozen, and does not depend on the agent
	Committed bool   `json:"committed"` // it may have run
	Addresses bool   `json:"addresses"` // some come along
}

// Reserve makes the shell: processes with the right ids, empty and stopped. If
// there are blockers, or an error, nothing is left behind.
func (h *Host) Reserve(ctx context.Context, c Config) (s *Shell, blockers, warnings []migrate.Finding, err error) {
	if c.Migration == "" || filepath.Base(c.Migration) != c.Migration {
		return nil, nil, nil, fmt.Errorf("%q cannot name a control group", c.Migration)
	}
	blockers, warnings, err = h.Check(ctx, c.Inventory, c.Options)
	if err != nil || len(blockers) > 0 {
		return nil, blockers, warnings, err
	}
	s = &Shell{host: h, config: c, group: h.groups.Child(c.Migration), checked: make(map[checkedFile]bool)}
	s.plan = Plan{Migration: c.Migration, Group: s.group.Dir()}
	for i := range c.Inventory.Processes {
		s.plan.PIDs = append(s.plan.PIDs, c.Inventory.Processes[i].PID)
	}
	s.plan.Addresses = len(c.Inventory.Addresses) > 0
	s.noteChecked(c.Inventory.Files)
	if err := s.save(); err != nil {
		return nil, nil, warnings, err
	}
	if err = s.dropStrays(c.Inventory.Addresses); err == nil {
		err = s.make(ctx, h)
	}
	if err != nil {
		err = errors.Join(err, s.Release(context.WithoutCancel(ctx)))
		if conflict, ok := errors.AsType[*pidTakenError](err); ok {
			return nil, []migrate.Finding{migrate.Findingf(migrate.CodePIDTaken, "try again, or choose another host", "%s", conflict)}, warnings, nil
		}
		return nil, nil, warnings, err
	}
	return s, nil, warnings, nil
}

// enter puts a process into the group of its migration.
func (h *Host) enter(g freezer.Group, pid int) error {
	h.entry.Lock()
	defer h.entry.Unlock()
	if err := g.Make(); err != nil {
		return err
	}
	return g.Add(pid)
}

// Sweep removes the groups of processes that arrived and have ended or moved on
// since. The kernel refuses to remove the others, and those that it refuses
// otherwise are for the next time.
func (h *Host) Sweep() {
	_, _ = resource.SweepGuests() // what fails is for the next time
	h.entry.Lock()
	defer h.entry.Unlock()
	entries, err := os.ReadDir(h.groups.Dir())
	if err != nil {
		return
	}
	for _, e := range entries {
		if e.IsDir() {
			_ = os.Remove(h.groups.Child(e.Name()).Dir())
		}
	}
}

// Recover takes up what an agent that died has left of a shell, by the plan
// that was saved last. One that was not prepared is removed.
func (h *Host) Recover(ctx context.Context, plan Plan, save func(Plan) error) (*Shell, error) {
	s := &Shell{host: h, config: Config{Migration: plan.Migration, Save: save}, plan: plan, group: freezer.At(plan.Group)}
	pids, err := s.group.Processes()
	if err != nil {
		return nil, err
	}
	if s.arrival, err = resource.LoadArrival(s.arrivalFile()); err != nil {
		return nil, err
	}
	if !plan.Prepared {
		if err := errors.Join(s.kill(ctx), s.arrival.Discard()); err != nil {
			return nil, fmt.Errorf("removing an unfinished shell: %w", err)
		}
	}
	s.gone = len(pids) == 0 || !plan.Prepared
	return s, nil
}

// pidTakenError says that an id that the tree needs is in use.
type pidTakenError struct{ tid, pid int }

func (e *pidTakenError) Error() string { return taken(e.tid, e.pid) }

// pidTaken turns the kernel's answer to a wish for an id into an error that says so.
func pidTaken(err error, tid, pid int) error {
	if errors.Is(err, unix.EEXIST) {
		return &pidTakenError{tid, pid}
	}
	return err
}
