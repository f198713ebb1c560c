package target

import (
	"context"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/migrate/procfs"
	"github.com/pagurus-project/pagurus/migrate/resource"
	"github.com/pagurus-project/pagurus/pageserver"
)

// closeSeams makes one mapping of what is one to the program and several to the
// kernel: mremap(2) takes no more than one. Neighbours are never joined once each
// has had pages by itself (is_mergeable_anon_vma, mm/vma.c). A mapping that grew
// over a gap to where another one was is such a case: the source has one whose
// pages are new there, the shell has two.
func (s *Shell) closeSeams(ctx context.Context, p *process, before []image.Mapping) error {
	var candidates []*image.Mapping
	for i := range p.mappings {
		m := &p.mappings[i]
		first := slices.IndexFunc(before, func(old image.Mapping) bool { return old.End > m.Start })
		if m.Backing == image.BackingAnonymous && first >= 0 && first+1 < len(before) && before[first+1].Start < m.End {
			candidates = append(candidates, m)
		}
	}
	if len(candidates) == 0 {
		return nil
	}
	vmas, err := procfs.Process{PID: p.PID()}.Maps()
	if err != nil {
		return err
	}
	for _, m := range candidates {
		first := slices.IndexFunc(vmas, func(v procfs.VMA) bool { return v.End > m.Start })
		var pieces []image.AddressRange
		for i := first; i >= 0 && i < len(vmas) && vmas[i].Start < m.End; i++ {
			pieces = append(pieces, image.AddressRange{Start: max(vmas[i].Start, m.Start), End: min(vmas[i].End, m.End)})
		}
		if len(pieces) < 2 {
			continue
		}
		if err := s.join(ctx, p, m, pieces); err != nil {
			return fmt.Errorf("joining %d pieces of %#x-%#x: %w", len(pieces), m.Start, m.End, err)
		}
	}
	return nil
}

// join makes one mapping of pieces, of which each is one. The one with the most
// pages stays. The others are moved away, mapped anew, which joins them with it,
// and filled from where they are now.
func (s *Shell) join(ctx context.Context, p *process, m *image.Mapping, pieces []image.AddressRange) error {
	placed := s.memory.spaces[pageserver.SpaceID(p.space)].placed
	stays, most, size := 0, uint64(0), uint64(0)
	for i, piece := range pieces {
		var pages uint64
		for r := range placed.Within(pageRange(piece)) {
			pages += r.Pages
		}
		if pages > most {
			stays, most = i, pages
		}
		size += piece.Bytes()
	}
	kernels, err := resource.KernelMappings(p.PID())
	if err != nil {
		return err
	}
	away, err := image.Hole(size, p.occupied(p.mappings, kernels))
	if err != nil {
		return err
	}
	const flags = unix.MREMAP_MAYMOVE | unix.MREMAP_FIXED
	move := p.Thread(p.PID()).Batch(ctx)
	at := away
	for i, piece := range pieces {
		if i != stays {
			move.Call(unix.SYS_MREMAP, uintptr(piece.Start), uintptr(piece.Bytes()), uintptr(piece.Bytes()), flags, uintptr(at))
		}
		at += piece.Bytes()
	}
	if err := move.RunAll(ctx); err != nil {
		return fmt.Errorf("moving them: %w", err)
	}
	for i, piece := range pieces {
		if i != stays {
			if err := resource.Map(ctx, p.Process, []image.Mapping{m.Piece(piece)}, nil, nil); err != nil {
				return err
			}
		}
	}
	at = away
	buf := make([]byte, 1<<20)
	for i, piece := range pieces {
		if i != stays {
			for r := range placed.Within(pageRange(piece)) {
				if err := p.copyPages(r, at-piece.Start, buf); err != nil {
					return err
				}
			}
		}
		at += piece.Bytes()
	}
	return p.unmap(ctx, []image.AddressRange{{Start: away, End: away + size}})
}

// copyPages copies pages from further up in the address space.
func (p *process) copyPages(r pageserver.Range, distance uint64, buf []byte) error {
	for r.Pages > 0 {
		now := pageserver.Range{First: r.First, Pages: min(r.Pages, uint64(len(buf))/image.PageSize)}
		a := addressRange(now)
		content := buf[:a.Bytes()]
		if err := p.ReadMemory(uintptr(a.Start+distance), content); err != nil {
			return err
		}
		if err := p.write([]pageserver.Range{now}, content); err != nil {
			return err
		}
		r.First, r.Pages = r.First+pageserver.PageNo(now.Pages), r.Pages-now.Pages
	}
	return nil
}
