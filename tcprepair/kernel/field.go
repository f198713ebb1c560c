package kernel

import (
	"encoding/binary"
	"strings"

	"github.com/cilium/ebpf/btf"
)

// A Field is a part of a struct: bytes, or bits of some. The zero value is none.
type Field struct{ bit, bits uint32 }

// Find finds what a path of members leads to, as "tw_sk.__tw_common.skc_state", from anonymous
// structs and unions on, too. A bit field lies within eight bytes of where it begins.
func Find(s *btf.Struct, path string) (f Field, ok bool) {
	members, at := s.Members, btf.Bits(0)
	for {
		name, rest, more := strings.Cut(path, ".")
		m, offset, ok := member(members, name)
		if !ok {
			return Field{}, false
		}
		at += offset
		if !more {
			return fieldOf(m, at)
		}
		inner, ok := btf.UnderlyingType(m.Type).(*btf.Struct)
		if !ok {
			return Field{}, false
		}
		members, path = inner.Members, rest
	}
}

func fieldOf(m btf.Member, at btf.Bits) (Field, bool) {
	if m.BitfieldSize > 0 {
		return Field{uint32(at), uint32(m.BitfieldSize)}, true
	}
	size, err := btf.Sizeof(m.Type)
	return Field{uint32(at), uint32(size) * 8}, err == nil
}

// member finds one, in anonymous structs and unions, too.
func member(members []btf.Member, name string) (m btf.Member, at btf.Bits, ok bool) {
	for _, m := range members {
		if m.Name != "" {
			if m.Name == name {
				return m, m.Offset, true
			}
			continue
		}
		var inner []btf.Member
		switch t := btf.UnderlyingType(m.Type).(type) {
		case *btf.Struct:
			inner = t.Members
		case *btf.Union:
			inner = t.Members
		}
		if found, offset, ok := member(inner, name); ok {
			return found, m.Offset + offset, true
		}
	}
	return m, 0, false
}

// Rest are all parts of a struct but those of some names, as bytes.
func Rest(s *btf.Struct, but []string) []Field {
	not := make([]bool, s.Size)
	for _, name := range but {
		if f, ok := Find(s, name); ok {
			for at := f.Offset(); at < f.end(); at++ {
				not[at] = true
			}
		}
	}
	var all []Field
	for at := range not {
		switch last := len(all) - 1; {
		case not[at]:
		case last >= 0 && all[last].end() == at:
			all[last].bits += 8
		default:
			all = append(all, Field{uint32(at) * 8, 8})
		}
	}
	return all
}

// Offset is the byte in which it begins.
func (f Field) Offset() int { return int(f.bit / 8) }

// end is the byte behind it.
func (f Field) end() int { return int(f.bit+f.bits+7) / 8 }

// Within is the same field of a struct that is part of another one, from a byte on.
func (f Field) Within(offset int) Field { return Field{f.bit + uint32(offset)*8, f.bits} }

// Bytes are its bytes in a copy of the struct, of a bit field those that have parts of it.
func (f Field) Bytes(b []byte) []byte { return b[f.Offset():f.end()] }

// Number reads it in a copy of the struct, if it has eight bytes at most. None is 0.
func (f Field) Number(b []byte) uint64 {
	var word [8]byte
	copy(word[:], b[f.Offset():])
	n := binary.NativeEndian.Uint64(word[:]) >> (f.bit % 8)
	if f.bits < 64 {
		n &= 1<<f.bits - 1
	}
	return n
}

// AppendTo appends what it is in a copy of the struct, and nothing beside it.
func (f Field) AppendTo(to, b []byte) []byte {
	if f.bit%8 == 0 && f.bits%8 == 0 {
		return append(to, f.Bytes(b)...)
	}
	return binary.NativeEndian.AppendUint64(to, f.Number(b))
}
