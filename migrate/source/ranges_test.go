package source

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/pagurus-project/pagurus/migrate/image"
)

// set is a set of numbers, against which sets of ranges are checked.
type set map[uint64]bool

func drawRanges(t *rapid.T, name string) []image.AddressRange {
	var all []image.AddressRange
	for range rapid.IntRange(0, 6).Draw(t, name+" ranges") {
		start := rapid.Uint64Range(0, 40).Draw(t, name+" start")
		all = append(all, image.AddressRange{Start: start, End: start + rapid.Uint64Range(0, 9).Draw(t, name+" size")})
	}
	return all
}

func setOf(all []image.AddressRange) set {
	s := make(set)
	for _, r := range all {
		for at := r.Start; at < r.End; at++ {
			s[at] = true
		}
	}
	return s
}

func TestRanges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		listA, listB := drawRanges(t, "a"), drawRanges(t, "b")
		a, b := union(listA), union(listB)
		check := func(what string, got ranges, member func(inA, inB bool) bool) {
			for i, r := range got {
				if r.Start >= r.End || i > 0 && got[i-1].End > r.Start {
					t.Fatalf("%s of %v and %v is out of order: %v", what, a, b, got)
				}
			}
			inA, inB, inGot := setOf(listA), setOf(listB), setOf(got)
			for at := range uint64(64) {
				if want := member(inA[at], inB[at]); inGot[at] != want {
					t.Fatalf("%s of %v and %v: %d is in it: %v", what, a, b, at, !want)
				}
			}
			if got.bytes() != uint64(len(inGot)) {
				t.Fatalf("%v has %d bytes", got, got.bytes())
			}
		}
		check("union", union(listA, listB), func(a, b bool) bool { return a || b })
		check("difference", a.without(b), func(a, b bool) bool { return a && !b })
		check("intersection", a.within(b), func(a, b bool) bool { return a && b })
	})
}

func TestUnionJoins(t *testing.T) {
	got := union([]image.AddressRange{{Start: 4, End: 6}, {Start: 0, End: 2}}, []image.AddressRange{{Start: 2, End: 4}, {Start: 9, End: 9}})
	if want := (ranges{{Start: 0, End: 6}}); !slices.Equal(got, want) {
		t.Errorf("%v instead of %v", got, want)
	}
}
