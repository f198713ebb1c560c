package image

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// page is what a model of an address space knows of one page: the mapping as
// it concerns this page alone, and whether what was placed in it is still there.
type page struct {
	Mapping
	placed bool
}

// at is the page of a mapping at an address, without what concerns the others.
func (m *Mapping) at(addr uint64) page {
	p := *m
	p.Fresh = nil
	if m.Backing == BackingFile || m.Backing == BackingObject {
		p.Offset += addr - m.Start
	}
	p.AddressRange = AddressRange{addr, addr + PageSize}
	return page{Mapping: p}
}

// space is a model of an address space, by address.
type space map[uint64]page

func spaceOf(mappings []Mapping, placed bool) space {
	s := make(space)
	for _, m := range mappings {
		for addr := m.Start; addr < m.End; addr += PageSize {
			p := m.at(addr)
			p.placed = placed
			s[addr] = p
		}
	}
	return s
}

// apply does what a shell does with a change. Like mmap(2) with
// MAP_FIXED_NOREPLACE it refuses to map over anything, and to unmap nothing.
func (s space) apply(t rapid.TB, c Change) {
	for _, r := range c.Unmap {
		for addr := r.Start; addr < r.End; addr += PageSize {
			if _, ok := s[addr]; !ok {
				t.Fatalf("unmaps %#x, where nothing is", addr)
			}
			delete(s, addr)
		}
	}
	for _, m := range c.Map {
		for addr := m.Start; addr < m.End; addr += PageSize {
			if _, ok := s[addr]; ok {
				t.Fatalf("maps %#x, where something is", addr)
			}
			s[addr] = m.at(addr)
		}
	}
}

// sameMemory is what a page must have in common with the one before for its
// content to count.
func sameMemory(a, b page) bool {
	type key struct {
		backing   Backing
		shared    bool
		growsDown bool
		what      Index
		offset    uint64
		name      string
		mayWrite  bool
	}
	of := func(p page) key {
		k := key{backing: p.Backing, shared: p.Shared, growsDown: p.Flags&FlagGrowsDown != 0}
		switch p.Backing {
		case BackingFile:
			k.what, k.offset = p.File, p.Offset
			k.mayWrite = p.Shared && p.Flags&FlagMayWrite != 0
		case BackingObject:
			k.what, k.offset = p.Object, p.Offset
		case BackingKernel:
			k.name = p.Name
		}
		return k
	}
	return of(a) == of(b)
}

// drawMappings draws mappings within a few pages, so that two lists of them
// often touch, overlap and agree.
func drawMappings(fresh bool) *rapid.Generator[[]Mapping] {
	return rapid.Custom(func(t *rapid.T) []Mapping {
		var list []Mapping
		at := uint64(10)
		for range rapid.IntRange(0, 6).Draw(t, "mappings") {
			at += rapid.Uint64Range(0, 3).Draw(t, "gap")
			pages := rapid.Uint64Range(1, 6).Draw(t, "pages")
			m := Mapping{
				AddressRange: AddressRange{at * PageSize, (at + pages) * PageSize},
				Prot:         rapid.SampledFrom([]int{0, 1, 3}).Draw(t, "prot"),
				Backing:      rapid.SampledFrom([]Backing{BackingAnonymous, BackingAnonymous, BackingFile, BackingObject, BackingKernel}).Draw(t, "backing"),
				Flags:        rapid.SampledFrom([]VMFlags{0, 0, FlagGrowsDown, FlagMayWrite, FlagLocked}).Draw(t, "flags"),
			}
			switch m.Backing {
			case BackingFile, BackingObject:
				m.Shared = rapid.Bool().Draw(t, "shared")
				// Often the same byte at the same address as another one.
				m.Offset = (at + rapid.Uint64Range(0, 1).Draw(t, "offset")) * PageSize
				m.File = rapid.IntRange(0, 1).Draw(t, "file")
				m.Object = m.File
			case BackingKernel:
				m.Name = rapid.SampledFrom([]string{"[vdso]", "[vvar]"}).Draw(t, "name")
			}
			if fresh && rapid.Bool().Draw(t, "fresh") {
				first := rapid.Uint64Range(0, pages-1).Draw(t, "first fresh")
				last := rapid.Uint64Range(first, pages-1).Draw(t, "last fresh")
				m.Fresh = []AddressRange{{(at + first) * PageSize, (at + last + 1) * PageSize}}
			}
			list = append(list, m)
			at += pages
		}
		return list
	})
}

// A change applied to the one list gives the other, and keeps exactly what is
// the same memory as before.
func TestDiff(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		before, after := drawMappings(false).Draw(t, "before"), drawMappings(true).Draw(t, "after")
		if rapid.Bool().Draw(t, "related") { // one of them changed, the others as they were
			after = slices.Clone(before)
			if len(after) > 0 {
				i := rapid.IntRange(0, len(after)-1).Draw(t, "which")
				changed := drawMappings(true).Draw(t, "changed")
				after = append(slices.Clone(after[:i]), after[i+1:]...)
				for _, m := range changed {
					if !slices.ContainsFunc(after, func(o Mapping) bool { return m.Start < o.End && o.Start < m.End }) {
						after = append(after, m)
					}
				}
				slices.SortFunc(after, func(a, b Mapping) int { return int(a.Start) - int(b.Start) })
			}
		}
		if err := validateMappings(after, 2, 2); err != nil {
			t.Fatal(err)
		}
		old, want := spaceOf(before, true), spaceOf(after, false)
		for addr, p := range want {
			o, ok := old[addr]
			p.placed = ok && sameMemory(o, p)
			m := at(after, addr)
			for _, f := range m.Fresh {
				p.placed = p.placed && (addr < f.Start || addr >= f.End)
			}
			want[addr] = p
		}

		change := Diff(before, after)
		got := spaceOf(before, true)
		got.apply(t, change)

		for addr, p := range got {
			if w, ok := want[addr]; ok && p.placed {
				// Protection, flags and names are set at the end.
				p.Mapping = w.Mapping
				got[addr] = p
			}
		}
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(page{})); diff != "" {
			t.Errorf("after %+v (-want +got):\n%s", change, diff)
		}
		for i := 1; i < len(change.Unmap); i++ {
			if change.Unmap[i-1].End >= change.Unmap[i].Start {
				t.Errorf("unmaps %v and %v: not in order, or in two where one does", change.Unmap[i-1], change.Unmap[i])
			}
		}
	})
}

// From nothing to something every mapping is made in one piece.
func TestDiffFromNothing(t *testing.T) {
	mappings := sampleLayout().Processes[0].Mappings
	got := Diff(nil, mappings)
	want := slices.Clone(mappings)
	for i := range want {
		want[i].Fresh = nil
	}
	if diff := cmp.Diff(Change{Map: want}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := Diff(mappings, nil); len(got.Map) > 0 || len(got.Unmap) != 3 { // two of the four touch
		t.Errorf("back to nothing: %+v", got)
	}
}

func TestAt(t *testing.T) {
	mem := &sample().Processes[0].Memory
	for addr, want := range map[uint64]int{
		0: -1, 0x3fffff: -1, 0x400000: 0, 0x401fff: 0, 0x402000: -1, 0x6fffff: 1, 0x700000: 2, 0x700fff: 2, 0x701000: -1, maxAddress: -1,
	} {
		got := -1
		for i := range mem.Mappings {
			if mem.At(addr) == &mem.Mappings[i] {
				got = i
			}
		}
		if got != want {
			t.Errorf("%#x: mapping %d, want %d", addr, got, want)
		}
	}
}
