package target

import (
	"context"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/migrate/resource"
	"github.com/pagurus-project/pagurus/pageserver"
)

// applyLayout makes the shell look as the source looked at the beginning of a
// round: what stays is not touched, its pages are there already.
func (s *Shell) applyLayout(ctx context.Context, l *image.Layout) error {
	if len(l.Processes) != len(s.processes) {
		return fmt.Errorf("the layout has %d processes, the shell has %d", len(l.Processes), len(s.processes))
	}
	if err := s.checkFiles(ctx, l.Files, false); err != nil {
		return err
	}
	if err := s.growObjects(l.Objects); err != nil {
		return err
	}
	for i, p := range s.processes {
		state := &l.Processes[i]
		if state.PID != p.PID() || state.Space != p.space {
			return fmt.Errorf("process %d in space %d of the layout is %d in space %d of the shell", state.PID, state.Space, p.PID(), p.space)
		}
		if err := s.applyMappings(ctx, p, state.Mappings, l.Files); err != nil {
			return fmt.Errorf("process %d: %w", p.PID(), err)
		}
		if err := p.setThreads(ctx, state.Threads); err != nil {
			return err
		}
	}
	return nil
}

// growObjects makes new objects and gives the known ones their size.
func (s *Shell) growObjects(objects []image.Object) error {
	for i := range objects {
		o := &objects[i]
		if i < len(s.objects) {
			if o.Kind != s.known[i].Kind || o.Space != s.known[i].Space {
				return fmt.Errorf("object %d changed from %v to %v", i, s.known[i], *o)
			}
			if o.Bytes != s.known[i].Bytes {
				if err := s.objects[i].Truncate(int64(o.Bytes)); err != nil {
					return fmt.Errorf("resizing object %d: %w", i, err)
				}
				s.memory.resizeObject(pageserver.SpaceID(o.Space), o.Bytes)
			}
			s.known[i] = *o
			continue
		}
		file, err := resource.MakeObject(o)
		if err != nil {
			return err
		}
		s.objects = append(s.objects, file)
		s.known = append(s.known, *o)
		if err := s.memory.addObject(pageserver.SpaceID(o.Space), file, o.Bytes); err != nil {
			return err
		}
	}
	return nil
}

func (s *Shell) applyMappings(ctx context.Context, p *process, wanted []image.Mapping, files []image.File) error {
	wanted = slices.DeleteFunc(slices.Clone(wanted), func(m image.Mapping) bool { return m.Backing == image.BackingKernel })
	if err := p.moveScratchAway(ctx, wanted); err != nil {
		return fmt.Errorf("moving scratch memory: %w", err)
	}
	change := image.Diff(p.mappings, wanted)
	if err := p.unmap(ctx, change.Unmap); err != nil {
		return fmt.Errorf("unmapping: %w", err)
	}
	if err := resource.Map(ctx, p.Process, change.Map, files, s.objects); err != nil {
		return err
	}
	if err := p.protect(ctx, wanted); err != nil {
		return fmt.Errorf("protecting: %w", err)
	}
	before := p.mappings
	p.mappings = wanted
	s.memory.setProcess(pageserver.SpaceID(p.space), p, change.Unmap)
	return s.closeSeams(ctx, p, before)
}

// protect gives mappings that stay and whose protection changed the one that
// fits now, before pages are placed in them: two neighbours that were written
// to under different protections are two mappings for ever, and the program
// would find that out when it resizes what was one to it (mremap(2)).
func (p *process) protect(ctx context.Context, wanted []image.Mapping) error {
	before := image.Memory{Mappings: p.mappings}
	b := p.Thread(p.PID()).Batch(ctx)
	for i := range wanted {
		now := &wanted[i]
		for addr := now.Start; addr < now.End; {
			old := before.At(addr)
			if old == nil {
				// Fresh here; on to what was there before.
				next := slices.IndexFunc(p.mappings, func(m image.Mapping) bool { return m.Start > addr })
				if next < 0 {
					break
				}
				addr = p.mappings[next].Start
				continue
			}
			end := min(old.End, now.End)
			if protection := resource.ShellProtection(now); protection != resource.ShellProtection(old) {
				b.Call(unix.SYS_MPROTECT, uintptr(addr), uintptr(end-addr), uintptr(protection))
			}
			addr = end
			if b.Room() < 4<<10 {
				if err := b.RunAll(ctx); err != nil {
					return err
				}
				b = p.Thread(p.PID()).Batch(ctx)
			}
		}
	}
	return b.RunAll(ctx)
}

// unmap unmaps ranges, in as many batches as it takes.
func (p *process) unmap(ctx context.Context, ranges []image.AddressRange) error {
	return p.each(ctx, ranges, unix.SYS_MUNMAP)
}

// each makes a call with the address and the size of each range, and further
// arguments.
func (p *process) each(ctx context.Context, ranges []image.AddressRange, nr uintptr, args ...uintptr) error {
	for chunk := range slices.Chunk(ranges, 1024) {
		b := p.Thread(p.PID()).Batch(ctx)
		for _, r := range chunk {
			b.Call(nr, append([]uintptr{uintptr(r.Start), uintptr(r.Bytes())}, args...)...)
		}
		if err := b.RunAll(ctx); err != nil {
			return err
		}
	}
	return nil
}
