package main

import (
	"fmt"
	"maps"
	"runtime"
	"slices"

	"golang.org/x/sys/unix"
)

const (
	maxSpans     = 64
	maxSpanPages = 512 // 2 MiB

	// Names of pages of spans are far from those of owners' pages.
	firstSpan pageID = 1 << 40
	spanNames pageID = 1 << 12 // no span has more pages
)

// A churner changes its address space all the time and checks that every page
// of every mapping holds what it should.
type churner struct {
	journal   *journal
	random    uint64
	spans     []*span
	next      pageID
	joined    *joined
	questions chan chan answer
	scratch   [pageSize]byte
	done      map[string]int64
}

// A span is one mapping. Its pages keep their names when it moves.
type span struct {
	name        pageID
	data        []byte
	generations []uint32
	protection  int
}

func (c *churner) run(ready chan<- struct{}) {
	runtime.LockOSThread()
	c.next, c.done = firstSpan, make(map[string]int64)
	for range maxSpans / 2 {
		c.do("mmap", c.mmap)
	}
	c.do("joined", func() (err error) {
		c.joined, err = newJoined(c.next)
		c.next += spanNames
		return err
	})
	w := newWatch(c.journal)
	ready <- struct{}{}
	for next := monotonic(); ; {
		next = max(next+int64(quantum), monotonic())
		sleepUntil(next)
		select {
		case q := <-c.questions:
			q <- answer{thread: w.report(), clock: w.clock, counts: c.verifyAll(w)}
		default:
			c.change()
		}
		w.step()
	}
}

// pick is a number from 0 to n-1.
func (c *churner) pick(n int) int {
	c.random += 0x9e3779b97f4a7c15
	return int(mix(c.random) % uint64(n))
}

// change does one thing to the address space.
func (c *churner) change() {
	switch kind := c.pick(16); {
	case len(c.spans) == 0 || kind < 3 && len(c.spans) < maxSpans:
		c.do("mmap", c.mmap)
	case kind < 5:
		c.do("munmap", c.munmap)
	case kind < 7:
		c.do("mremap", c.mremap)
	case kind < 10:
		c.do("mprotect", c.mprotect)
	case kind < 12:
		c.do("madvise", c.dontneed)
	case kind < 13:
		c.do("joined", c.joined.write)
	default:
		c.do("write", c.write)
	}
}

func (c *churner) do(name string, what func() error) {
	if err := what(); err != nil {
		c.journal.problemf("%s: %v", name, err)
		return
	}
	c.done[name]++
}

func (c *churner) mmap() error {
	pages := 1 + c.pick(maxSpanPages)
	data, err := unix.Mmap(-1, 0, pages*pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	s := &span{name: c.next, data: data, generations: make([]uint32, pages), protection: unix.PROT_READ | unix.PROT_WRITE}
	c.next += spanNames
	c.spans = append(c.spans, s)
	for range pages / 2 {
		s.write(c.pick(pages))
	}
	return nil
}

func (c *churner) munmap() error {
	i := c.pick(len(c.spans))
	s := c.spans[i]
	if err := c.verify(s); err != nil {
		return err
	}
	c.spans = slices.Delete(c.spans, i, i+1)
	return unix.Munmap(s.data)
}

// mremap grows or shrinks a span; a span that grows is moved if need be.
func (c *churner) mremap() error {
	s := c.some()
	pages := 1 + c.pick(maxSpanPages)
	data, err := unix.Mremap(s.data, pages*pageSize, unix.MREMAP_MAYMOVE)
	if err != nil {
		return fmt.Errorf("%d to %d pages: %w\n%s", len(s.generations), pages, err, mappingsOf(s.data))
	}
	s.data = data
	// New pages are zero, which is generation 0, also where there were others before.
	kept := min(pages, len(s.generations))
	s.generations = append(s.generations[:kept:kept], make([]uint32, pages-kept)...)
	return c.verify(s)
}

func (c *churner) mprotect() error {
	s := c.some()
	protections := []int{unix.PROT_NONE, unix.PROT_READ, unix.PROT_READ | unix.PROT_WRITE}
	return s.protect(protections[c.pick(len(protections))])
}

// dontneed drops some pages of a span: they are zero then.
func (c *churner) dontneed() error {
	s := c.some()
	first := c.pick(len(s.generations))
	end := first + 1 + c.pick(len(s.generations)-first)
	if err := unix.Madvise(s.data[first*pageSize:end*pageSize], unix.MADV_DONTNEED); err != nil {
		return err
	}
	clear(s.generations[first:end])
	return nil
}

func (c *churner) write() error {
	s := c.some()
	if err := s.protect(unix.PROT_READ | unix.PROT_WRITE); err != nil {
		return err
	}
	for range 1 + len(s.generations)/8 {
		s.write(c.pick(len(s.generations)))
	}
	return nil
}

func (c *churner) some() *span { return c.spans[c.pick(len(c.spans))] }

// verify checks all pages of a span, whatever its protection is.
func (c *churner) verify(s *span) error {
	protection := s.protection
	if err := s.protect(protection | unix.PROT_READ); err != nil {
		return err
	}
	for i, g := range s.generations {
		if err := check(s.page(i), c.scratch[:], s.name+pageID(i), g); err != nil {
			return err
		}
	}
	return s.protect(protection)
}

func (c *churner) verifyAll(w *watch) map[string]int64 {
	counts := map[string]int64{"spans": int64(len(c.spans))}
	maps.Copy(counts, c.done)
	for _, s := range append([]*span{c.joined.span}, c.spans...) {
		if err := c.verify(s); err != nil {
			c.journal.problemf("%v", err)
		}
		counts["verified"] += int64(len(s.generations))
		w.step()
	}
	return counts
}

func (s *span) page(i int) []byte { return s.data[i*pageSize : (i+1)*pageSize] }

func (s *span) write(i int) {
	s.generations[i]++
	fill(s.page(i), s.name+pageID(i), s.generations[i])
}

func (s *span) protect(protection int) error {
	if protection == s.protection {
		return nil
	}
	if err := unix.Mprotect(s.data, protection); err != nil {
		return fmt.Errorf("setting protection %d: %w", protection, err)
	}
	s.protection = protection
	return nil
}
