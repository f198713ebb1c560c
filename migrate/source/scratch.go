package source

import (
	"context"
	"fmt"

	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/migrate/procfs"
	"github.com/pagurus-project/pagurus/parasite"
)

// mapScratch maps memory for remote calls in the stopped processes, where the
// plan says that it may be: so it does not stay there if we die.
func (m *Migration) mapScratch(ctx context.Context) error {
	for i, p := range m.processes {
		vmas, err := procfs.Process{PID: p.pid}.Maps()
		if err != nil {
			return err
		}
		occupied := make([]image.AddressRange, len(vmas))
		for j := range vmas {
			occupied[j] = image.AddressRange{Start: vmas[j].Start, End: vmas[j].End}
		}
		at, err := image.Hole(parasite.ScratchBytes, occupied)
		if err != nil {
			return fmt.Errorf("mapping memory for remote calls in process %d: %w", p.pid, err)
		}
		scratch := parasite.ScratchAt(uintptr(at))
		m.plan.Processes[i].Scratch = &scratch
	}
	if err := m.save(); err != nil {
		return err
	}
	for i, p := range m.processes {
		if err := p.leader().MapScratch(ctx, *m.plan.Processes[i].Scratch); err != nil {
			return fmt.Errorf("mapping memory for remote calls in process %d: %w", p.pid, err)
		}
	}
	return nil
}

// withoutScratch takes memory of ours out of an image.
func (m *Migration) withoutScratch(taken *image.Image) {
	for i := range taken.Processes {
		mem := &taken.Processes[i].Memory
		mem.Mappings = withoutScratch(mem.Mappings, m.plan.Processes[i].Scratch)
	}
}

// withoutScratch takes memory of ours out of a list of mappings. The kernel may
// have joined it with memory of the program's.
func withoutScratch(mappings []image.Mapping, scratch *parasite.Scratch) []image.Mapping {
	ours := union(scratchRanges(scratch))
	var all []image.Mapping
	for i := range mappings {
		for _, part := range (ranges{mappings[i].AddressRange}).without(ours) {
			m := mappings[i]
			m.AddressRange = part // where that is less, the mapping is anonymous as ours is
			all = append(all, m)
		}
	}
	return all
}

func scratchRanges(s *parasite.Scratch) []image.AddressRange {
	code, data := uint64(s.Code), uint64(s.Data)
	return []image.AddressRange{
		{Start: code, End: code + image.PageSize},
		{Start: data, End: data + parasite.ScratchBytes - image.PageSize},
	}
}
