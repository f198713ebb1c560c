package pageserver

import (
	"iter"
	"math/bits"
)

// A PageSet is a set of pages of one space, however fragmented. Adding and
// removing costs what the range is long, not what the set is large. It is used
// by one goroutine at a time.
type PageSet map[uint64]*[chunkWords]uint64

// Pages are kept by chunks of 4096, a bit each.
const (
	wordPages  = 64
	chunkWords = 64
	chunkPages = wordPages * chunkWords
)

// words calls f for the words of the set that a range touches, with the bits of
// the range in them, and the number of the word's first page. Words that are not
// there are made or left out.
func (p PageSet) words(r Range, make bool, f func(first uint64, word *uint64, bits uint64)) {
	for first, end := uint64(r.First), uint64(r.First)+r.Pages; first < end; {
		chunk := p[first/chunkPages]
		if chunk == nil && !make {
			first = first&^(chunkPages-1) + chunkPages
			continue
		}
		if chunk == nil {
			chunk = new([chunkWords]uint64)
			p[first/chunkPages] = chunk
		}
		start := first &^ (wordPages - 1)
		stop := min(start+wordPages, end)
		mask := ^uint64(0) << (first % wordPages)
		if stop%wordPages != 0 {
			mask &= 1<<(stop%wordPages) - 1
		}
		f(start, &chunk[first%chunkPages/wordPages], mask)
		first = stop
	}
}

// Add puts the pages of a range into the set.
func (p PageSet) Add(r Range) {
	p.words(r, true, func(_ uint64, word *uint64, mask uint64) { *word |= mask })
}

// Remove takes the pages of a range out of the set.
func (p PageSet) Remove(r Range) {
	p.words(r, false, func(_ uint64, word *uint64, mask uint64) { *word &^= mask })
}

// Overlaps reports whether any page of a range is in the set.
func (p PageSet) Overlaps(r Range) bool {
	found := false
	p.words(r, false, func(_ uint64, word *uint64, mask uint64) { found = found || *word&mask != 0 })
	return found
}

// Within are the parts of a range that are in the set, in order. The set must
// not change meanwhile.
func (p PageSet) Within(r Range) iter.Seq[Range] {
	return func(yield func(Range) bool) {
		var run Range
		done := false
		p.words(r, false, func(first uint64, word *uint64, mask uint64) {
			for set := *word & mask; set != 0 && !done; {
				from := bits.TrailingZeros64(set)
				n := bits.TrailingZeros64(^(set >> from))
				at := PageNo(first) + PageNo(from)
				if run.Pages > 0 && run.First+PageNo(run.Pages) == at {
					run.Pages += uint64(n)
				} else {
					done = run.Pages > 0 && !yield(run)
					run = Range{at, uint64(n)}
				}
				set &^= (1<<n - 1) << from
			}
		})
		if !done && run.Pages > 0 {
			yield(run)
		}
	}
}

// Len is how many pages the set has.
func (p PageSet) Len() uint64 {
	var n int
	for _, chunk := range p {
		for _, word := range chunk {
			n += bits.OnesCount64(word)
		}
	}
	return uint64(n)
}
