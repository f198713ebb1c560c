package dirty

import (
	"context"
	"slices"

	"github.com/pagurus-project/pagurus/migrate/image"
)

// Range is a stretch of addresses.
type Range = image.AddressRange

// Changes are what happened to a mapping since it was looked at before. The
// ranges of each list are in address order.
type Changes struct {
	Fresh   []Range
	Content []Range
	Gone    []Range
	Guards  []Range
}

// Tracker is what both trackers do.
type Tracker interface {
	// NeedsStop reports whether the process must be stopped during Collect.
	NeedsStop() bool
	// SeesSharedWrites reports whether every store through a shared mapping is
	// found. If not, objects must be compared.
	SeesSharedWrites() bool
	// Collect tells for each mapping what has changed since the last Collect,
	// and begins anew. Mappings that it has not seen before are all fresh. The
	// result has an element for each mapping.
	Collect(ctx context.Context, mappings []image.Mapping) ([]Changes, error)
	// Final is the last Collect, of a process that is frozen. It protects
	// nothing any more; Gone may contain pages that never held anything.
	Final(ctx context.Context, mappings []image.Mapping) ([]Changes, error)
	// Close ends the tracking and undoes what it did to the address space.
	Close() error
}

// copiesFile reports whether stores to a mapping make private copies of pages
// that are in a file or object.
func copiesFile(m *image.Mapping) bool {
	return m.Private() && m.Backing != image.BackingAnonymous
}

// subtract is a without b; both are in order.
func subtract(a, b []Range) []Range {
	var out []Range
	for _, r := range a {
		for len(b) > 0 && b[0].End <= r.Start {
			b = b[1:]
		}
		for _, cut := range b {
			if cut.Start >= r.End {
				break
			}
			if cut.Start > r.Start {
				out = append(out, Range{Start: r.Start, End: cut.Start})
			}
			r.Start = min(cut.End, r.End)
		}
		if r.Start < r.End {
			out = append(out, r)
		}
	}
	return out
}

// clip is the part of the ranges that lies within r.
func clip(ranges []Range, r Range) []Range {
	var out []Range
	for _, s := range ranges {
		s.Start, s.End = max(s.Start, r.Start), min(s.End, r.End)
		if s.Start < s.End {
			out = append(out, s)
		}
	}
	return out
}

// push appends a range and joins it with the last one if they touch.
func push(ranges []Range, start, end uint64) []Range {
	if n := len(ranges); n > 0 && ranges[n-1].End == start {
		ranges[n-1].End = end
		return ranges
	}
	return append(ranges, Range{Start: start, End: end})
}

func byStart(a, b Range) int {
	switch {
	case a.Start < b.Start:
		return -1
	case a.Start > b.Start:
		return 1
	}
	return 0
}

// join sorts ranges and joins those that touch or overlap.
func join(ranges []Range) []Range {
	slices.SortFunc(ranges, byStart)
	var out []Range
	for _, r := range ranges {
		if n := len(out); n > 0 && r.Start <= out[n-1].End {
			out[n-1].End = max(out[n-1].End, r.End)
			continue
		}
		out = append(out, r)
	}
	return out
}
