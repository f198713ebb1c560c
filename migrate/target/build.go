package target

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/migrate/resource"
)

// build makes the shell into the process, up to the point where it stands
// frozen in its control group and nothing of ours holds it any more:
//
//  1. every kind of resource is restored (package resource);
//  2. our memory is taken out, the group frozen;
//  3. threads get their registers and are let go, into the freezer.
func (s *Shell) build(ctx context.Context, m *image.Image) error {
	if err := s.agrees(m); err != nil {
		return err
	}
	if err := s.checkFiles(ctx, m.Files, true); err != nil {
		return err
	}
	if err := s.checkSockets(ctx, m); err != nil {
		return err
	}
	for i, p := range s.processes {
		if err := s.awaitClocks(ctx, p.PID(), m.Clocks); err != nil {
			return err
		}
		var tids []int
		for _, t := range m.Processes[i].Threads {
			tids = append(tids, t.TID)
		}
		if err := p.setThreads(ctx, tids); err != nil {
			return err
		}
	}
	for i, o := range s.objects {
		if err := resource.SealObject(o, &m.Objects[i]); err != nil {
			return err
		}
	}
	r := resource.NewTreeRestore(m, &s.arrival, s.objects)
	if err := s.restore(ctx, r); err != nil {
		return err
	}
	for _, p := range s.processes {
		if err := p.Strip(ctx); err != nil {
			return fmt.Errorf("taking our memory out of process %d: %w", p.PID(), err)
		}
	}
	if err := s.group.Freeze(ctx); err != nil {
		return err
	}
	for i, p := range s.processes {
		if err := r.PutThreads(i, p.Process); err != nil {
			return err
		}
	}
	// From here on the shell does not die with us any more: the plan says that
	// it is worth something only when all of it has been let go of.
	for _, p := range s.processes {
		if err := p.Detach(); err != nil {
			return fmt.Errorf("letting go of process %d: %w", p.PID(), err)
		}
	}
	// They have left one kind of stop for another.
	if err := s.group.Freeze(ctx); err != nil {
		return err
	}
	return s.closeOurs()
}

// agrees compares the image with what was built of it so far.
func (s *Shell) agrees(m *image.Image) error {
	if len(m.Processes) != len(s.processes) || len(m.Objects) < len(s.objects) {
		return fmt.Errorf("the state has %d processes and %d objects, the shell has %d and %d", len(m.Processes), len(m.Objects), len(s.processes), len(s.objects))
	}
	for i, p := range s.processes {
		from := &m.Processes[i]
		if from.PID != p.PID() || from.Memory.Space != p.space {
			return fmt.Errorf("process %d of the state is %d in the shell", from.PID, p.PID())
		}
		wanted := slices.DeleteFunc(slices.Clone(from.Memory.Mappings), func(m image.Mapping) bool { return m.Backing == image.BackingKernel })
		if c := image.Diff(p.mappings, wanted); len(c.Map) > 0 || len(c.Unmap) > 0 {
			return fmt.Errorf("the mappings of process %d changed after its last layout: %v", p.PID(), c)
		}
	}
	if !slices.Equal(m.Addresses, s.config.Inventory.Addresses) {
		return fmt.Errorf("the state has the addresses %v, the shell was made for %v", m.Addresses, s.config.Inventory.Addresses)
	}
	return s.growObjects(m.Objects)
}

func (s *Shell) restore(ctx context.Context, r *resource.TreeRestore) error {
	var err error
	for i, p := range s.processes {
		if err = r.Process(ctx, i, p.Process); err != nil {
			break
		}
	}
	return errors.Join(err, r.Close())
}

// maxClockLag is how long a shell waits for its clocks to be where the
// source's were: they must never go backwards.
const maxClockLag = time.Second

func (s *Shell) awaitClocks(ctx context.Context, pid int, then image.Clocks) error {
	now, err := resource.ClocksOf(pid)
	if err != nil {
		return err
	}
	lag := time.Duration(max(then.Monotonic-now.Monotonic, then.Boottime-now.Boottime))
	if lag <= 0 {
		return nil
	}
	if lag > maxClockLag {
		return fmt.Errorf("the clocks of process %d would go back by %v", pid, lag)
	}
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(lag):
		return nil
	}
}

// closeOurs lets go of what was only needed for building.
func (s *Shell) closeOurs() error {
	var errs []error
	if s.tracer != nil {
		errs = append(errs, s.tracer.Close())
	}
	for _, o := range s.objects {
		errs = append(errs, o.Close())
	}
	s.tracer, s.objects, s.processes = nil, nil, nil
	return errors.Join(errs...)
}
