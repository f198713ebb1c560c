package pageserver_test

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/pagurus-project/pagurus/pageserver"
)

// TestPageSet compares a set with one that is a map.
func TestPageSet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		set, model := make(pageserver.PageSet), make(map[pageserver.PageNo]bool)
		// Around the edges of words and chunks, and far away.
		page := rapid.OneOf(rapid.Uint64Range(0, 200), rapid.Uint64Range(4000, 4200), rapid.Uint64Range(1<<35, 1<<35+10))
		ranges := rapid.Custom(func(t *rapid.T) pageserver.Range {
			return pageserver.Range{First: pageserver.PageNo(page.Draw(t, "first")), Pages: rapid.Uint64Range(1, 200).Draw(t, "pages")}
		})
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				r := ranges.Draw(t, "range")
				set.Add(r)
				for i := range r.Pages {
					model[r.First+pageserver.PageNo(i)] = true
				}
			},
			"remove": func(t *rapid.T) {
				r := ranges.Draw(t, "range")
				set.Remove(r)
				for i := range r.Pages {
					delete(model, r.First+pageserver.PageNo(i))
				}
			},
			"": func(t *rapid.T) {
				if set.Len() != uint64(len(model)) {
					t.Fatalf("%d pages instead of %d", set.Len(), len(model))
				}
				r := ranges.Draw(t, "looked at")
				var want []pageserver.Range
				for i := range r.Pages {
					at := r.First + pageserver.PageNo(i)
					switch n := len(want); {
					case !model[at]:
					case n > 0 && want[n-1].First+pageserver.PageNo(want[n-1].Pages) == at:
						want[n-1].Pages++
					default:
						want = append(want, pageserver.Range{First: at, Pages: 1})
					}
				}
				if diff := cmp.Diff(want, slices.Collect(set.Within(r))); diff != "" {
					t.Fatalf("within %v (-want +got):\n%s", r, diff)
				}
				if set.Overlaps(r) != (len(want) > 0) {
					t.Fatalf("overlap with %v is not told", r)
				}
			},
		})
	})
}
