package source

import (
	"encoding/binary"
	"fmt"

	"github.com/pagurus-project/pagurus/migrate/image"
)

// Bits of an entry of /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst).
const (
	entryGuard   = 1 << 58
	entryFile    = 1 << 61
	entrySwapped = 1 << 62
	entryPresent = 1 << 63

	entryBytes = 8
)

// populated are the pages of a part of a private mapping that hold something of
// their own, and perhaps some more that read as if they did not.
func (p *process) populated(m *image.Mapping, part image.AddressRange) (ranges, error) {
	var found ranges
	buf := make([]byte, 64<<10)
	for at := part.Start; at < part.End; {
		want := min(uint64(len(buf)), part.Bytes()/image.PageSize*entryBytes, (part.End-at)/image.PageSize*entryBytes)
		n, err := p.pagemap.ReadAt(buf[:want], int64(at/image.PageSize*entryBytes))
		if n < entryBytes {
			return nil, fmt.Errorf("reading the page table of process %d at %#x: %w", p.pid, at, err)
		}
		for entries := buf[:n-n%entryBytes]; len(entries) > 0; entries = entries[entryBytes:] {
			entry := binary.LittleEndian.Uint64(entries)
			next := at + image.PageSize
			// The file's own pages are at the destination too.
			own := m.Backing == image.BackingAnonymous || entry&entryFile == 0
			if entry&(entryPresent|entrySwapped) != 0 && entry&entryGuard == 0 && own {
				if k := len(found); k > 0 && found[k-1].End == at {
					found[k-1].End = next
				} else {
					found = append(found, image.AddressRange{Start: at, End: next})
				}
			}
			at = next
		}
	}
	return found, nil
}
