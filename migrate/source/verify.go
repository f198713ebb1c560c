package source

import (
	"context"

	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/migrate/wire"
	"github.com/pagurus-project/pagurus/pageserver"
)

// verifyChunk is how many pages are summed up together: a difference is found
// that exactly.
const verifyChunk = 256

// verifies reports whether all of the memory is compared: if it was asked for, or if
// the tracker may have missed something.
func (m *Migration) verifies() bool { return m.config.Options.Verify || m.host.losesWrites }

// verify sums up all of the memory of the frozen tree: what holds something,
// as the page tables say and not the trackers, and what was ever sent.
func (m *Migration) verify(ctx context.Context) (*wire.Verify, error) {
	var runs []pageserver.Run
	for i, p := range m.processes {
		mem := &m.image.Processes[i].Memory
		var held, room []image.AddressRange
		for j := range mem.Mappings {
			mapping := &mem.Mappings[j]
			if !mapping.Private() {
				continue
			}
			there, err := p.populated(mapping, mapping.AddressRange)
			if err != nil {
				return nil, err
			}
			held, room = append(held, there...), append(room, mapping.AddressRange)
		}
		all := union(held, inSet(p.sent, union(room))).without(union(mem.Guards))
		runs = appendRuns(runs, mem.Space, all)
	}
	for i := range m.image.Objects {
		o := m.objects[i]
		there, err := o.extents(m.image.Objects[i].Bytes)
		if err != nil {
			return nil, err
		}
		runs = appendRuns(runs, o.space, union(there, o.sent))
	}
	digests, err := pageserver.DigestChunks(ctx, m.memory, runs, verifyChunk)
	if err != nil {
		return nil, err
	}
	v := &wire.Verify{ChunkPages: verifyChunk, Repair: m.host.losesWrites}
	for _, r := range runs {
		v.Runs = append(v.Runs, wire.Run{Space: uint32(r.Space), First: uint64(r.First), Pages: r.Pages})
	}
	for _, d := range digests {
		v.Digests = append(v.Digests, uint64(d))
	}
	return v, nil
}
