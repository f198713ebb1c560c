package image

import "slices"

// A Change turns one list of mappings into another. Unmap comes first.
type Change struct {
	Unmap []AddressRange
	Map   []Mapping // pieces of the new mappings
}

// Diff says how to get from the mappings of one round to those of the next.
// What stays is not touched: its pages have been placed already. Protection
// and flags do not count, they are set at the end.
func Diff(before, after []Mapping) Change {
	var c Change
	for _, edge := range segments(before, after) {
		old, now := at(before, edge.Start), at(after, edge.Start)
		if old != nil && now != nil && !now.fresh(edge) && continues(old, now) {
			continue
		}
		if old != nil {
			c.Unmap = appendRange(c.Unmap, edge)
		}
		if now != nil {
			c.Map = appendPiece(c.Map, now, edge)
		}
	}
	return c
}

// segments cuts the address space at every edge of a mapping or fresh range.
func segments(lists ...[]Mapping) []AddressRange {
	var edges []uint64
	for _, list := range lists {
		for i := range list {
			edges = append(edges, list[i].Start, list[i].End)
			for _, f := range list[i].Fresh {
				edges = append(edges, f.Start, f.End)
			}
		}
	}
	slices.Sort(edges)
	edges = slices.Compact(edges)
	var all []AddressRange
	for i := 1; i < len(edges); i++ {
		all = append(all, AddressRange{edges[i-1], edges[i]})
	}
	return all
}

// at is the mapping that covers addr, or nil.
func at(list []Mapping, addr uint64) *Mapping {
	i, found := slices.BinarySearchFunc(list, addr, func(m Mapping, addr uint64) int {
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
	return &list[i]
}

// At is the mapping that covers addr, or nil.
func (mem *Memory) At(addr uint64) *Mapping { return at(mem.Mappings, addr) }

func (m *Mapping) fresh(r AddressRange) bool {
	return slices.ContainsFunc(m.Fresh, func(f AddressRange) bool { return f.Start <= r.Start && r.End <= f.End })
}

// continues reports whether two mappings, where they overlap, show the same
// memory in the same way.
func continues(old, now *Mapping) bool {
	if old.Backing != now.Backing || old.Shared != now.Shared || (old.Flags^now.Flags)&FlagGrowsDown != 0 {
		return false
	}
	switch old.Backing {
	case BackingAnonymous:
		return true
	case BackingFile:
		// Through which descriptor a shared mapping was made decides whether it
		// may ever become writable.
		return old.File == now.File && old.distance() == now.distance() && (!old.Shared || (old.Flags^now.Flags)&FlagMayWrite == 0)
	case BackingObject:
		return old.Object == now.Object && old.distance() == now.distance()
	}
	return old.Name == now.Name
}

// distance is the same for two mappings that show the same byte of a file at
// the same address.
func (m *Mapping) distance() uint64 { return m.Start - m.Offset }

// Piece is the part of a mapping that lies in r.
func (m *Mapping) Piece(r AddressRange) Mapping {
	p := *m
	p.Fresh = nil
	if m.Backing == BackingFile || m.Backing == BackingObject {
		p.Offset += r.Start - m.Start
	}
	p.AddressRange = r
	return p
}

func appendRange(list []AddressRange, r AddressRange) []AddressRange {
	if n := len(list); n > 0 && list[n-1].End == r.Start {
		list[n-1].End = r.End
		return list
	}
	return append(list, r)
}

// appendPiece joins a piece with the one before it if both are of the same mapping.
func appendPiece(list []Mapping, m *Mapping, r AddressRange) []Mapping {
	if n := len(list); n > 0 && list[n-1].End == r.Start && list[n-1].Start >= m.Start {
		list[n-1].End = r.End
		return list
	}
	return append(list, m.Piece(r))
}
