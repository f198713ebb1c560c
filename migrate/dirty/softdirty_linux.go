package dirty

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate/image"
)

// SoftDirty tracks by the soft-dirty bit (Documentation/admin-guide/mm/soft-dirty.rst).
//
//	Collect (stopped):  read the entries of all pages, then clear all bits
//	Final (frozen):     read the entries of all pages
//
// The bit is set for every page, present or not, of a mapping that is new
// since the bits were cleared. Pages that have vanished show no bit: they are
// those that were there at the last Collect and are not any more. On some kernels
// written pages are missed: see LosesWrites.
type SoftDirty struct {
	pid     int
	pagemap *os.File
	present []Range // at the last Collect
}

// NewSoftDirty starts tracking process pid.
func NewSoftDirty(pid int) (*SoftDirty, error) {
	pagemap, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", pid))
	if err != nil {
		return nil, err
	}
	return &SoftDirty{pid: pid, pagemap: pagemap}, nil
}

var _ Tracker = (*SoftDirty)(nil)

// NeedsStop is true: a page written between reading and clearing would be lost.
func (s *SoftDirty) NeedsStop() bool { return true }

// SeesSharedWrites is false: the bit goes when a page of a shared mapping is
// unmapped (madvise(MADV_DONTNEED)), the content stays.
func (s *SoftDirty) SeesSharedWrites() bool { return false }

// Close has nothing to undo: the bits are nobody else's.
func (s *SoftDirty) Close() error { return s.pagemap.Close() }

// Collect implements [Tracker].
func (s *SoftDirty) Collect(ctx context.Context, mappings []image.Mapping) ([]Changes, error) {
	changes, present, err := s.read(ctx, mappings)
	if err != nil {
		return nil, err
	}
	s.present = present
	return changes, clearBits(fmt.Sprintf("/proc/%d/clear_refs", s.pid))
}

// Final implements [Tracker].
func (s *SoftDirty) Final(ctx context.Context, mappings []image.Mapping) ([]Changes, error) {
	changes, _, err := s.read(ctx, mappings)
	return changes, err
}

// clearBits clears the soft-dirty bits; the command is in proc_pid_clear_refs(5).
func clearBits(path string) error {
	if err := os.WriteFile(path, []byte("4"), 0); err != nil {
		return fmt.Errorf("clearing soft-dirty bits: %w", err)
	}
	return nil
}

// read looks at every page of the mappings.
func (s *SoftDirty) read(ctx context.Context, mappings []image.Mapping) ([]Changes, []Range, error) {
	all := make([]Changes, len(mappings))
	var present []Range
	for i := range mappings {
		if err := ctx.Err(); err != nil {
			return nil, nil, err
		}
		c, there, err := s.readMapping(&mappings[i])
		if err != nil {
			return nil, nil, fmt.Errorf("reading the entries of %#x-%#x: %w", mappings[i].Start, mappings[i].End, err)
		}
		all[i] = c
		for _, r := range there {
			present = push(present, r.Start, r.End)
		}
	}
	return all, present, nil
}

// Bits of an entry of /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst).
const (
	entrySoftDirty = 1 << 55
	entryGuard     = 1 << 58
	entryFile      = 1 << 61
	entrySwapped   = 1 << 62
	entryPresent   = 1 << 63

	entryBytes = 8
	entryFrame = 1<<55 - 1 // of a present page: where it is in physical memory
)

// zeroFrames are where the kernel's pages of zeros are, which it maps when
// memory that holds nothing is read: a small one and, perhaps, a huge one.
type zeroFrames struct{ small, huge uint64 }

// hugePages are the pages of a huge page.
const hugePages = 512

// has reports whether an entry leads to one of them. Without the permission to
// see frames (CAP_SYS_ADMIN) none does.
func (z zeroFrames) has(entry uint64) bool {
	if entry&entryPresent == 0 {
		return false
	}
	frame := entry & entryFrame
	return z.small != 0 && frame == z.small || z.huge != 0 && frame-z.huge < hugePages
}

// zeroPages finds them out by reading memory of its own, which it keeps: the
// huge page of zeros is there only as long as somebody uses it.
var zeroPages = sync.OnceValue(func() zeroFrames {
	const size = hugePages * image.PageSize
	memory, err := unix.Mmap(-1, 0, 2*size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return zeroFrames{}
	}
	start := addressOf(memory)
	huge := (start + size - 1) / size * size
	small := start
	if huge == start {
		small = start + size
	}
	_ = unix.Madvise(memory[huge-start:][:size], unix.MADV_HUGEPAGE)              // a kernel without huge pages has none of zeros
	_ = unix.Madvise(memory[small-start:][:image.PageSize], unix.MADV_NOHUGEPAGE) // likewise
	pagemap, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return zeroFrames{}
	}
	defer pagemap.Close()
	frame := func(addr uint64) uint64 {
		touched.Store(uint32(memory[addr-start]))
		entry := make([]byte, entryBytes)
		if _, err := pagemap.ReadAt(entry, int64(addr/image.PageSize*entryBytes)); err != nil {
			return 0
		}
		return binary.LittleEndian.Uint64(entry) & entryFrame
	}
	z := zeroFrames{small: frame(small), huge: frame(huge)}
	if z.huge%hugePages != 0 || z.huge == z.small {
		z.huge = 0 // no huge one was to be had
	}
	return z
})

// touched is where what was read goes, so that reading is not left out.
var touched atomic.Uint32

func (s *SoftDirty) readMapping(m *image.Mapping) (Changes, []Range, error) {
	var c Changes
	var there, guards []Range
	fresh := true // until a page shows up that is not soft-dirty
	zeros := zeroPages()
	buf := make([]byte, 128<<10)
	for at := m.Start; at < m.End; {
		want := min(uint64(len(buf)), (m.End-at)/image.PageSize*entryBytes)
		n, err := s.pagemap.ReadAt(buf[:want], int64(at/image.PageSize*entryBytes))
		if n < entryBytes {
			return c, nil, fmt.Errorf("reading pagemap: %d bytes of an entry: %w", n, err)
		}
		for entries := buf[:n-n%entryBytes]; len(entries) > 0; entries = entries[entryBytes:] {
			entry := binary.LittleEndian.Uint64(entries)
			next := at + image.PageSize
			dirty := entry&entrySoftDirty != 0
			fresh = fresh && dirty
			switch {
			case entry&entryGuard != 0:
				guards = push(guards, at, next)
				// One that is removed leaves nothing, and is to be told as gone.
				there = push(there, at, next)
			case entry&(entryPresent|entrySwapped) == 0:
			case zeros.has(entry):
				// A page that vanished and was then read: no bit tells of that.
			case copiesFile(m) && entry&entryFile != 0:
				// The file's own page: the destination has it too.
			default:
				there = push(there, at, next)
				if dirty {
					c.Content = push(c.Content, at, next)
				}
			}
			at = next
		}
	}
	c.Guards = guards
	if fresh {
		c.Fresh = []Range{m.AddressRange}
		return c, there, nil
	}
	c.Gone = subtract(clip(s.present, m.AddressRange), there)
	return c, there, nil
}
