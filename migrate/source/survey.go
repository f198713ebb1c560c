package source

import (
	"context"
	"fmt"
	"time"

	"github.com/pagurus-project/pagurus/migrate/dirty"
	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/pageserver"
)

// A survey is what one round has to carry.
type survey struct {
	layout *image.Layout
	runs   []pageserver.Run
	drops  []pageserver.Run
	pages  uint64    // in runs
	at     time.Time // before the first page table was looked at
}

// collect has the trackers look at the page tables: all that may have to be
// done while the tree stands still.
func (m *Migration) collect(ctx context.Context, layout *image.Layout, final bool) error {
	for i, p := range m.processes {
		tracked, places := trackedMappings(layout.Processes[i].Mappings)
		find := p.tracker.Collect
		if final {
			find = p.tracker.Final
		}
		changes, err := find(ctx, tracked)
		if err != nil {
			return fmt.Errorf("looking for changed pages of process %d: %w", p.pid, err)
		}
		p.found = found{places, changes}
	}
	return nil
}

// found is what a tracker has found: changes of the mappings at places.
type found struct {
	places  []int
	changes []dirty.Changes
}

// survey makes of what was collected what the round has to carry, and puts into
// the layout what the destination has to know beside the mappings themselves.
func (m *Migration) survey(ctx context.Context, layout *image.Layout, at time.Time, final bool) (*survey, error) {
	s := &survey{layout: layout, at: at}
	m.meetObjects()
	written := make([]ranges, len(layout.Objects))
	for i, p := range m.processes {
		if err := p.survey(s, &layout.Processes[i], written); err != nil {
			return nil, fmt.Errorf("looking for changed pages of process %d: %w", p.pid, err)
		}
	}
	for i := range layout.Objects {
		o := m.objects[i]
		send, drop, err := o.survey(ctx, written[i], layout.Objects[i].Bytes, final)
		if err != nil {
			return nil, err
		}
		s.runs, s.drops = appendRuns(s.runs, o.space, send), appendRuns(s.drops, o.space, drop)
	}
	for _, r := range s.runs {
		s.pages += r.Pages
	}
	return s, nil
}

// meetObjects takes in the objects that the dump has met since.
func (m *Migration) meetObjects() {
	all := m.dump.Objects()
	for i := len(m.objects); i < len(all); i++ {
		tell := true
		for _, p := range m.processes {
			tell = tell && p.tracker.SeesSharedWrites()
		}
		o := newObject(&all[i], tell)
		m.objects = append(m.objects, o)
		m.memory.objects[pageserver.SpaceID(o.space)] = o
	}
}

// survey adds the changes of one process's private memory to the survey, and
// those that were made through its mappings of objects to written.
//
// The mappings were read some time before the tracker looked at them, and the
// process may have replaced one in between: then the tracker knows the new one
// from now on while the layout still describes the old one. In the next round
// the destination finds that out by comparing layouts, and replaces it too. So
// the same comparison is made here, and whatever is replaced there is sent.
func (p *process) survey(s *survey, state *image.ProcessState, written []ranges) error {
	var content, void, gone, guards []image.AddressRange
	for i, place := range p.found.places {
		c, mapping := &p.found.changes[i], &state.Mappings[place]
		mapping.Fresh = union(c.Fresh)
		if mapping.Shared {
			written[mapping.Object] = union(written[mapping.Object], offsets(mapping, c.Content))
			continue
		}
		content, void = append(content, c.Content...), append(void, c.Fresh...)
		gone, guards = append(gone, c.Gone...), append(guards, c.Guards...)
	}
	mem := image.Memory{Mappings: state.Mappings}
	for _, piece := range image.Diff(p.layout, state.Mappings).Map {
		mapping := mem.At(piece.Start)
		for _, part := range (ranges{piece.AddressRange}).without(mapping.Fresh) {
			switch {
			case mapping.Private():
				there, err := p.populated(mapping, part)
				if err != nil {
					return err
				}
				content, void = append(content, there...), append(void, part)
			case mapping.Backing == image.BackingObject:
				written[mapping.Object] = union(written[mapping.Object], offsets(mapping, []image.AddressRange{part}))
			}
		}
	}
	p.settle(s, state, union(content), union(void), union(gone), union(guards))
	return nil
}

// settle turns what was found into runs, and keeps account of what the
// destination holds. Content are the pages to send; what it has in void it
// throws away by itself.
func (p *process) settle(s *survey, state *image.ProcessState, content, void, gone, guards ranges) {
	// The set may be large and fragmented, and the process may stand still: only
	// the parts that change are looked at.
	each(void, p.sent.Remove)
	// Most of what is gone never was there: only what the destination may hold
	// is worth telling.
	drops := inSet(p.sent, union(gone, guards)).without(content)
	each(drops, p.sent.Remove)
	each(content, p.sent.Add)
	p.guards = union(p.guards.without(void).without(content).without(gone), guards)
	p.layout = state.Mappings
	s.runs, s.drops = appendRuns(s.runs, state.Space, content), appendRuns(s.drops, state.Space, drops)
}

// trackedMappings are those whose pages are sent, and their places among all.
// Pages of a shared mapping of a regular file never are.
func trackedMappings(all []image.Mapping) (tracked []image.Mapping, places []int) {
	for i := range all {
		if m := &all[i]; m.Private() || m.Shared && m.Backing == image.BackingObject {
			tracked, places = append(tracked, *m), append(places, i)
		}
	}
	return tracked, places
}

// offsets are the places in the object behind a mapping.
func offsets(m *image.Mapping, addresses []image.AddressRange) ranges {
	all := make([]image.AddressRange, len(addresses))
	for i, a := range addresses {
		all[i] = image.AddressRange{Start: a.Start - m.Start + m.Offset, End: a.End - m.Start + m.Offset}
	}
	return union(all)
}
