package pageserver

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// Batches hold all pages in their order, one space each, within their bounds,
// and are full where the next run is of the same space.
func TestBatches(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		maxPages := rapid.SampledFrom([]uint64{1, 7, blockPages, 10_000}).Draw(t, "pages")
		runs := rapid.SliceOf(rapid.Custom(func(t *rapid.T) Run {
			return Run{
				SpaceID(rapid.IntRange(0, 2).Draw(t, "space")),
				Range{PageNo(rapid.IntRange(0, 1000).Draw(t, "first")), rapid.Uint64Range(0, 20_000).Draw(t, "pages")},
			}
		})).Draw(t, "runs")
		var got []Run
		for space, ranges := range batches(slices.Values(runs), maxPages) {
			if len(ranges) == 0 || len(ranges) > maxFrameRanges || countPages(ranges) > maxPages {
				t.Fatalf("batch of %d ranges with %d pages", len(ranges), countPages(ranges))
			}
			for _, r := range ranges {
				if r.Pages == 0 || r.Pages > maxRangePages {
					t.Fatalf("range %v", r)
				}
				got = append(got, Run{space, r})
			}
		}
		if want, got := joined(runs), joined(got); !slices.Equal(want, got) {
			t.Fatalf("batches hold %v, want %v", got, want)
		}
	})
}

func joined(runs []Run) []Run {
	var j []Run
	for _, run := range runs {
		if run.Pages > 0 {
			j = appendRun(j, run)
		}
	}
	return j
}

func TestBatchesAreFull(t *testing.T) {
	singles := func(yield func(Run) bool) {
		for i := range PageNo(1000) {
			if !yield(Run{1, Range{2 * i, 1}}) {
				return
			}
		}
	}
	n := 0
	for range batches(singles, blockPages) {
		n++
	}
	if want := (1000 + blockPages - 1) / blockPages; n != want {
		t.Errorf("%d batches for 1000 scattered pages, want %d", n, want)
	}
}

func TestReadPagesMarksWhatIsMissing(t *testing.T) {
	ranges := []Range{{10, 3}, {5, 2}, {100, 4}}
	for _, test := range []struct {
		name    string
		missing []Range
		want    []int // positions; nil: refused
	}{
		{"none", nil, []int{}},
		{"in order", []Range{{11, 1}, {5, 2}, {103, 1}}, []int{1, 3, 4, 8}},
		{"in another order", []Range{{103, 1}, {6, 1}, {10, 1}}, []int{0, 4, 8}},
		{"two in one", []Range{{100, 1}, {102, 2}}, []int{5, 7, 8}},
		{"all", ranges, []int{0, 1, 2, 3, 4, 5, 6, 7, 8}},
		{"beyond the end", []Range{{12, 2}}, nil},
		{"not asked for", []Range{{50, 1}}, nil},
		{"no pages", []Range{{10, 0}}, nil},
		{"overflowing", []Range{{10, ^uint64(0)}}, nil},
	} {
		gone := make([]bool, 9)
		gone[2] = true // left over from the block before
		err := readPages(missingSource(test.missing), 1, ranges, make([]byte, 9*PageSize), gone)
		if (err != nil) != (test.want == nil) {
			t.Errorf("%s: error %v", test.name, err)
			continue
		}
		got := []int{}
		for i, g := range gone {
			if g {
				got = append(got, i)
			}
		}
		if err == nil && !slices.Equal(got, test.want) {
			t.Errorf("%s: pages %v, want %v", test.name, got, test.want)
		}
	}
}

type missingSource []Range

func (m missingSource) Read(SpaceID, []Range, []byte) ([]Range, error) { return m, nil }
