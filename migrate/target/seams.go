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

// closeSeams makes one mapping of what is one to the program and several in the
// shell: mremap(2) takes no more than one. Two neighbours are never joined once
// each has had pages by itself, or if only one of them counts as committed memory
// (can_vma_merge_before, mm/vma.c). A mapping that grew over a gap to where another
// one was is such a case: the source has one whose pages are new there, the shell
// has two.
func (s *Shell) closeSeams(ctx context.Context, p *process, before []image.Mapping) error {
	candidates := grown(before, p.mappings)
	if len(candidates) == 0 {
		return nil
	}
	vmas, err := procfs.Process{PID: p.PID()}.Maps()
	if err != nil {
		return err
	}
	for _, m := range candidates {
		pieces := piecesOf(m, vmas)
		if len(pieces) < 2 {
			continue
		}
		// Most of it may stay where it is, unless what is mapped anew beside it
		// becomes one with another neighbour, or is of another kind: then it is
		// mapped as a whole.
		if err := s.join(ctx, p, m, pieces, s.largest(p, pieces)); err != nil {
			return fmt.Errorf("joining %d pieces of %#x-%#x: %w", len(pieces), m.Start, m.End, err)
		}
		now, err := procfs.Process{PID: p.PID()}.Maps()
		if err != nil {
			return err
		}
		if pieces = piecesOf(m, now); len(pieces) < 2 {
			continue
		}
		if err := s.join(ctx, p, m, pieces, none); err != nil {
			return fmt.Errorf("mapping %d pieces of %#x-%#x as one: %w", len(pieces), m.Start, m.End, err)
		}
	}
	return nil
}

const none = -1

// grown are the mappings of private memory that cover more than one that was there
// before, or more than the one. Both lists are in order.
func grown(before, after []image.Mapping) []*image.Mapping {
	var all []*image.Mapping
	at := 0
	for i := range after {
		m := &after[i]
		for at < len(before) && before[at].End <= m.Start {
			at++
		}
		if m.Backing != image.BackingAnonymous || at == len(before) || before[at].Start >= m.End {
			continue
		}
		if before[at].Start > m.Start || before[at].End < m.End {
			all = append(all, m)
		}
	}
	return all
}

// piecesOf are the parts of a mapping that the kernel has as one each.
func piecesOf(m *image.Mapping, vmas []procfs.VMA) []image.AddressRange {
	first, _ := slices.BinarySearchFunc(vmas, m.Start, func(v procfs.VMA, start uint64) int {
		if v.End <= start {
			return -1
		}
		return 1
	})
	var pieces []image.AddressRange
	for _, v := range vmas[first:] {
		if v.Start >= m.End {
			break
		}
		pieces = append(pieces, image.AddressRange{Start: max(v.Start, m.Start), End: min(v.End, m.End)})
	}
	return pieces
}

// largest is the piece with the most pages.
func (s *Shell) largest(p *process, pieces []image.AddressRange) int {
	placed := s.memory.placed(pageserver.SpaceID(p.space))
	largest, most := 0, uint64(0)
	for i, piece := range pieces {
		var pages uint64
		for r := range placed.Within(pageRange(piece)) {
			pages += r.Pages
		}
		if pages > most {
			largest, most = i, pages
		}
	}
	return largest
}

// join moves all pieces of a mapping away but one, or all, maps their places anew,
// and fills them from where the pieces are now.
func (s *Shell) join(ctx context.Context, p *process, m *image.Mapping, pieces []image.AddressRange, stays int) error {
	type moved struct {
		image.AddressRange
		to uint64
	}
	var size uint64
	for i, piece := range pieces {
		if i != stays {
			size += piece.Bytes()
		}
	}
	kernels, err := resource.KernelMappings(p.PID())
	if err != nil {
		return err
	}
	away, err := image.Hole(size, p.occupied(p.mappings, kernels))
	if err != nil {
		return err
	}
	var moves []moved
	fresh := []image.Mapping{*m}
	if stays != none {
		fresh = nil
	}
	for i, piece := range pieces {
		if i == stays {
			continue
		}
		moves = append(moves, moved{piece, away})
		away += piece.Bytes()
		if stays != none {
			fresh = append(fresh, m.Piece(piece))
		}
	}
	const flags = unix.MREMAP_MAYMOVE | unix.MREMAP_FIXED
	for chunk := range slices.Chunk(moves, 1024) {
		b := p.Thread(p.PID()).Batch(ctx)
		for _, r := range chunk {
			b.Call(unix.SYS_MREMAP, uintptr(r.Start), uintptr(r.Bytes()), uintptr(r.Bytes()), flags, uintptr(r.to))
		}
		if err := b.RunAll(ctx); err != nil {
			return fmt.Errorf("moving them away: %w", err)
		}
	}
	if err := resource.Map(ctx, p.Process, fresh, nil, nil); err != nil {
		return err
	}
	placed := s.memory.placed(pageserver.SpaceID(p.space))
	buf := make([]byte, 1<<20)
	for _, r := range moves {
		for pages := range placed.Within(pageRange(r.AddressRange)) {
			if err := p.copyPages(pages, r.to-r.Start, buf); err != nil {
				return err
			}
		}
		// One after the other, so that little is there twice.
		if err := p.unmap(ctx, []image.AddressRange{{Start: r.to, End: r.to + r.Bytes()}}); err != nil {
			return err
		}
	}
	return nil
}

// copyPages copies pages from further away in the address space.
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
