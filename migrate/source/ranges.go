package source

import (
	"cmp"
	"slices"

	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/pageserver"
)

// ranges is a set of addresses, or of offsets in an object: in order, without
// overlap, and no two of them touch.
type ranges []image.AddressRange

// union is the set of everything that is in one of the lists, which may be in
// any order.
func union(lists ...[]image.AddressRange) ranges {
	all := slices.Concat(lists...)
	slices.SortFunc(all, func(a, b image.AddressRange) int { return cmp.Compare(a.Start, b.Start) })
	out := all[:0]
	for _, r := range all {
		switch n := len(out); {
		case r.Start >= r.End:
		case n > 0 && r.Start <= out[n-1].End:
			out[n-1].End = max(out[n-1].End, r.End)
		default:
			out = append(out, r)
		}
	}
	return ranges(out)
}

// without is what is in a and not in b.
func (a ranges) without(b ranges) ranges {
	var out ranges
	for _, r := range a {
		for len(b) > 0 && b[0].End <= r.Start {
			b = b[1:]
		}
		for _, cut := range b {
			if cut.Start >= r.End {
				break
			}
			if cut.Start > r.Start {
				out = append(out, image.AddressRange{Start: r.Start, End: cut.Start})
			}
			r.Start = min(cut.End, r.End)
		}
		if r.Start < r.End {
			out = append(out, r)
		}
	}
	return out
}

// within is what is in both a and b.
func (a ranges) within(b ranges) ranges {
	var out ranges
	for _, r := range a {
		for len(b) > 0 && b[0].End <= r.Start {
			b = b[1:]
		}
		for _, s := range b {
			if s.Start >= r.End {
				break
			}
			out = append(out, image.AddressRange{Start: max(r.Start, s.Start), End: min(r.End, s.End)})
		}
	}
	return out
}

// bytes is the size of the set.
func (a ranges) bytes() uint64 {
	var n uint64
	for _, r := range a {
		n += r.Bytes()
	}
	return n
}

// pagesOf is a range of addresses in pages.
func pagesOf(r image.AddressRange) pageserver.Range {
	return pageserver.Range{First: pageserver.PageNo(r.Start / image.PageSize), Pages: r.Bytes() / image.PageSize}
}

// each calls f for every range of a set.
func each(a ranges, f func(pageserver.Range)) {
	for _, r := range a {
		f(pagesOf(r))
	}
}

// inSet is what of a is in a set of pages.
func inSet(set pageserver.PageSet, a ranges) ranges {
	var out ranges
	for _, r := range a {
		for part := range set.Within(pagesOf(r)) {
			start := uint64(part.First) * image.PageSize
			out = append(out, image.AddressRange{Start: start, End: start + part.Pages*image.PageSize})
		}
	}
	return out
}

// appendRuns appends a set as runs of pages of a space.
func appendRuns(runs []pageserver.Run, space uint32, a ranges) []pageserver.Run {
	for _, r := range a {
		runs = append(runs, pageserver.Run{
			Space: pageserver.SpaceID(space),
			Range: pagesOf(r),
		})
	}
	return runs
}
