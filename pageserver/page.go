package pageserver

import (
	"fmt"
	"iter"
)

// PageSize is the unit of everything here, whatever pages the kernel uses.
const PageSize = 4096

const (
	// maxPage is the number of the last page of a 64-bit address range.
	maxPage PageNo = 1<<52 - 1
	// maxRangePages is what an entry of a range table can express.
	maxRangePages = 4096
	// maxFrameRanges bounds a range table; a block has no more pages than that.
	maxFrameRanges = 256
	maxBlockPages  = 256
	maxBlockBytes  = maxBlockPages * PageSize
)

// SpaceID names one address space's private memory, or one shared object.
type SpaceID uint32

// PageNo numbers the pages of a space: an address or offset divided by PageSize.
type PageNo uint64

// Range is a number of adjacent pages.
type Range struct {
	First PageNo
	Pages uint64
}

func (r Range) String() string {
	return fmt.Sprintf("%#x+%d", uint64(r.First)*PageSize, r.Pages)
}

func (r Range) valid() bool {
	return r.First <= maxPage && r.Pages >= 1 && r.Pages <= uint64(maxPage-r.First)+1
}

// Run is a range of pages in a space.
type Run struct {
	Space SpaceID
	Range
}

func (r Run) String() string { return fmt.Sprintf("space %d %v", r.Space, r.Range) }

// Source is where pages are read. It is called by several goroutines at once,
// for disjoint ranges.
type Source interface {
	// Read fills buf with the pages of ranges, back to back. Pages that are not
	// there (they vanished after they were asked for) are returned in missing,
	// each of whose ranges lies within one of ranges; their part of buf is undefined.
	// Read keeps neither ranges nor buf.
	Read(space SpaceID, ranges []Range, buf []byte) (missing []Range, err error)
}

// Sink is where pages are placed. It is called by several goroutines at once,
// for disjoint ranges of one round, and refuses pages where nobody expects any:
// the ranges come from the network. It keeps neither ranges nor buf.
type Sink interface {
	// Write places the pages of ranges, which lie back to back in buf.
	Write(space SpaceID, ranges []Range, buf []byte) error
	// Zero makes the content of the pages zero.
	Zero(space SpaceID, ranges []Range) error
	// Drop makes the pages as if they had never been touched: they vanished at the source.
	Drop(space SpaceID, ranges []Range) error
}

// batches packs runs into lists of ranges of one space, each of at most
// maxPages pages and short enough for one frame. The list is valid until the
// next one.
func batches(runs iter.Seq[Run], maxPages uint64) iter.Seq2[SpaceID, []Range] {
	return func(yield func(SpaceID, []Range) bool) {
		var (
			space  SpaceID
			ranges = make([]Range, 0, maxFrameRanges)
			pages  uint64
		)
		for run := range runs {
			for run.Pages > 0 {
				if len(ranges) > 0 && (run.Space != space || pages == maxPages || len(ranges) == maxFrameRanges) {
					if !yield(space, ranges) {
						return
					}
					ranges, pages = ranges[:0], 0
				}
				space = run.Space
				n := min(run.Pages, maxPages-pages, maxRangePages)
				if !run.valid() {
					n = run.Pages // whoever uses it refuses it, rather than go through a part of it
				}
				ranges = append(ranges, Range{run.First, n})
				pages += n
				run.First += PageNo(n)
				run.Pages -= n
			}
		}
		if len(ranges) > 0 {
			yield(space, ranges)
		}
	}
}

func countPages(ranges []Range) uint64 {
	var n uint64
	for _, r := range ranges {
		n += r.Pages
	}
	return n
}

// each yields the numbers of r's pages.
func (r Range) each(yield func(PageNo) bool) {
	for i := range PageNo(r.Pages) {
		if !yield(r.First + i) {
			return
		}
	}
}

// appendRun appends a run to a list, joining it to the last one where it
// continues it.
func appendRun(runs []Run, run Run) []Run {
	if n := len(runs); n > 0 {
		last := &runs[n-1]
		if last.Space == run.Space && last.First+PageNo(last.Pages) == run.First {
			last.Pages += run.Pages
			return runs
		}
	}
	return append(runs, run)
}

// readPages has src fill buf with the pages of ranges and marks in gone, page
// by page, which ones are not there.
func readPages(src Source, space SpaceID, ranges []Range, buf []byte, gone []bool) error {
	missing, err := src.Read(space, ranges, buf)
	if err != nil {
		return fmt.Errorf("reading %s: %w", describe(space, ranges), err)
	}
	clear(gone)
	next, nextAt := 0, 0 // a range and the position of its first page in buf
	for _, m := range missing {
		// Missing ranges come in the order of ranges, as a rule: go on where the last one was.
		tried := 0
		for ; !ranges[next].contains(m); tried++ {
			if tried == len(ranges) {
				return fmt.Errorf("reading %s: %v is said to be missing and was not asked for", describe(space, ranges), m)
			}
			nextAt += int(ranges[next].Pages)
			if next++; next == len(ranges) {
				next, nextAt = 0, 0
			}
		}
		at := nextAt + int(m.First-ranges[next].First)
		for i := range int(m.Pages) {
			gone[at+i] = true
		}
	}
	return nil
}

func (r Range) contains(s Range) bool {
	return s.valid() && s.First >= r.First && s.First+PageNo(s.Pages) <= r.First+PageNo(r.Pages)
}

// describe says in an error which pages of a space are meant.
func describe(space SpaceID, ranges []Range) string {
	s := Run{space, ranges[0]}.String()
	if n := len(ranges); n > 1 {
		s += fmt.Sprintf(" and %d more ranges up to %v", n-1, ranges[n-1])
	}
	return s
}
