package target

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/pageserver"
)

// memory is where pages are placed: the private memory of the shell's
// processes, and the objects. It takes pages only where the layout of the round
// has room for them.
type memory struct {
	mu     sync.RWMutex // of the map; rounds and layouts take turns, so it is never waited for
	spaces map[pageserver.SpaceID]*space
}

var (
	_ pageserver.Sink   = (*memory)(nil)
	_ pageserver.Source = (*memory)(nil)
)

// A space is one of them. Exactly one of process and object is set.
type space struct {
	process *process
	object  *os.File
	room    []image.Mapping // of a process: its private mappings
	bytes   uint64          // of an object

	mu      sync.Mutex
	placed  pageserver.PageSet
	vanish  []image.AddressRange // to be dropped at the end of the round
	zeroing []byte
}

func newMemory() *memory { return &memory{spaces: make(map[pageserver.SpaceID]*space)} }

// setProcess says where pages of a process go from now on. What was placed in
// the ranges that were unmapped is gone.
func (m *memory) setProcess(id pageserver.SpaceID, p *process, unmapped []image.AddressRange) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.spaces[id]
	if s == nil {
		s = &space{process: p, placed: make(pageserver.PageSet)}
		m.spaces[id] = s
	}
	s.room = slices.DeleteFunc(slices.Clone(p.mappings), func(m image.Mapping) bool { return !m.Private() })
	for _, r := range unmapped {
		s.placed.Remove(pageRange(r))
	}
}

// placed are the pages that were placed in a space. Nothing is placed meanwhile.
func (m *memory) placed(id pageserver.SpaceID) pageserver.PageSet {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.spaces[id].placed
}

func (m *memory) addObject(id pageserver.SpaceID, file *os.File, size uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.spaces[id] != nil {
		return fmt.Errorf("space %d is used twice", id)
	}
	m.spaces[id] = &space{object: file, bytes: size, placed: make(pageserver.PageSet)}
	return nil
}

func (m *memory) resizeObject(id pageserver.SpaceID, size uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.spaces[id].bytes = size
}

// find returns a space if it has room for all the ranges.
func (m *memory) find(id pageserver.SpaceID, ranges []pageserver.Range) (*space, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	s := m.spaces[id]
	if s == nil {
		return nil, fmt.Errorf("there is no space %d", id)
	}
	for _, r := range ranges {
		if !s.hasRoom(addressRange(r)) {
			return nil, fmt.Errorf("space %d has no room for pages %v", id, r)
		}
	}
	return s, nil
}

func (s *space) hasRoom(r image.AddressRange) bool {
	if s.object != nil {
		return r.End <= (s.bytes+image.PageSize-1)/image.PageSize*image.PageSize
	}
	for r.Start < r.End {
		m := s.mappingAt(r.Start)
		if m == nil {
			return false
		}
		r.Start = m.End
	}
	return true
}

func (s *space) mappingAt(addr uint64) *image.Mapping {
	i, found := slices.BinarySearchFunc(s.room, addr, func(m image.Mapping, addr uint64) int {
		switch {
		case m.End <= addr:
			return -1
		case m.Start > addr:
			return 1
		}
		return 0
	})
	if !found {
		return nil
	}
	return &s.room[i]
}

func addressRange(r pageserver.Range) image.AddressRange {
	start := uint64(r.First) * image.PageSize
	return image.AddressRange{Start: start, End: start + r.Pages*image.PageSize}
}

func pageRange(r image.AddressRange) pageserver.Range {
	return pageserver.Range{First: pageserver.PageNo(r.Start / image.PageSize), Pages: r.Bytes() / image.PageSize}
}

// Write implements [pageserver.Sink].
func (m *memory) Write(id pageserver.SpaceID, ranges []pageserver.Range, buf []byte) error {
	s, err := m.find(id, ranges)
	if err != nil {
		return err
	}
	s.markPlaced(ranges)
	if s.object != nil {
		return s.writeObject(ranges, buf)
	}
	return s.process.write(ranges, buf)
}

func (s *space) markPlaced(ranges []pageserver.Range) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range ranges {
		s.placed.Add(r)
	}
}

// writeObject writes pages to an object; of the last page, what belongs to it.
func (s *space) writeObject(ranges []pageserver.Range, buf []byte) error {
	for _, r := range ranges {
		a := addressRange(r)
		content := buf[:a.Bytes()]
		buf = buf[a.Bytes():]
		content = content[:min(a.End, s.bytes)-a.Start]
		if _, err := s.object.WriteAt(content, int64(a.Start)); err != nil {
			return err
		}
	}
	return nil
}

// write writes pages to the memory of a process. What it may not write itself
// (memory without access) can be reached by its tracer.
func (p *process) write(ranges []pageserver.Range, buf []byte) error {
	local := []unix.Iovec{{Base: &buf[0], Len: uint64(len(buf))}}
	remote := make([]unix.RemoteIovec, len(ranges))
	for i, r := range ranges {
		a := addressRange(r)
		remote[i] = unix.RemoteIovec{Base: uintptr(a.Start), Len: int(a.Bytes())}
	}
	done, err := unix.ProcessVMWritev(p.PID(), local, remote, 0)
	if err != nil && !errors.Is(err, unix.EFAULT) {
		return fmt.Errorf("writing to process %d: %w", p.PID(), err)
	}
	if err == nil && done == len(buf) {
		return nil
	}
	for _, r := range ranges {
		a := addressRange(r)
		if err := p.WriteMemory(uintptr(a.Start), buf[:a.Bytes()]); err != nil {
			return err
		}
		buf = buf[a.Bytes():]
	}
	return nil
}

// Zero implements [pageserver.Sink]. Memory that nothing was ever placed in is
// zero already, unless a file is behind it.
func (m *memory) Zero(id pageserver.SpaceID, ranges []pageserver.Range) error {
	s, err := m.find(id, ranges)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range ranges {
		a := addressRange(r)
		switch {
		case s.object != nil:
			if s.placed.Overlaps(r) {
				err = s.punch(a)
			}
		default:
			err = s.zero(a)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// zero makes memory of a process zero.
func (s *space) zero(a image.AddressRange) error {
	for a.Start < a.End {
		m := s.mappingAt(a.Start)
		part := image.AddressRange{Start: a.Start, End: min(a.End, m.End)}
		a.Start = part.End
		if m.Backing == image.BackingAnonymous {
			if s.placed.Overlaps(pageRange(part)) {
				s.vanish = append(s.vanish, part)
			}
			continue
		}
		if s.zeroing == nil {
			s.zeroing = make([]byte, 1<<20)
		}
		for at := part.Start; at < part.End; at += uint64(len(s.zeroing)) {
			if err := s.process.WriteMemory(uintptr(at), s.zeroing[:min(part.End-at, uint64(len(s.zeroing)))]); err != nil {
				return err
			}
		}
		s.placed.Add(pageRange(part))
	}
	return nil
}

// punch takes a part out of an object.
func (s *space) punch(a image.AddressRange) error {
	s.placed.Remove(pageRange(a))
	err := unix.Fallocate(int(s.object.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(a.Start), int64(a.Bytes()))
	if errors.Is(err, unix.EOPNOTSUPP) {
		_, err = s.object.WriteAt(make([]byte, min(a.End, s.bytes)-a.Start), int64(a.Start))
	}
	if err != nil {
		return fmt.Errorf("taking pages out of an object: %w", err)
	}
	return nil
}

// Drop implements [pageserver.Sink].
func (m *memory) Drop(id pageserver.SpaceID, ranges []pageserver.Range) error {
	s, err := m.find(id, ranges)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range ranges {
		a := addressRange(r)
		if !s.placed.Overlaps(r) {
			continue
		}
		if s.object != nil {
			if err := s.punch(a); err != nil {
				return err
			}
			continue
		}
		s.vanish = append(s.vanish, a)
	}
	return nil
}

// settle carries out what only the shell itself can do: letting go of pages
// (madvise(2), MADV_DONTNEED). It is called at the end of each round.
func (m *memory) settle(ctx context.Context) error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	for _, s := range m.spaces {
		if len(s.vanish) == 0 {
			continue
		}
		if err := s.process.each(ctx, s.vanish, unix.SYS_MADVISE, unix.MADV_DONTNEED); err != nil {
			return fmt.Errorf("letting go of pages of process %d: %w", s.process.PID(), err)
		}
		for _, r := range s.vanish {
			s.placed.Remove(pageRange(r))
		}
		s.vanish = s.vanish[:0]
	}
	return nil
}

// Read implements [pageserver.Source], to compare what was placed with what
// the source has.
func (m *memory) Read(id pageserver.SpaceID, ranges []pageserver.Range, buf []byte) (missing []pageserver.Range, err error) {
	s, err := m.find(id, ranges)
	if err != nil {
		return nil, err
	}
	for _, r := range ranges {
		a := addressRange(r)
		content := buf[:a.Bytes()]
		buf = buf[a.Bytes():]
		if s.object == nil {
			err = s.process.ReadMemory(uintptr(a.Start), content)
		} else {
			var n int
			n, err = unix.Pread(int(s.object.Fd()), content, int64(a.Start))
			clear(content[max(n, 0):])
		}
		if err != nil {
			return nil, err
		}
	}
	return nil, nil
}
