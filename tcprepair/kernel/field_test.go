package kernel

import (
	"testing"

	"github.com/cilium/ebpf/btf"
	"github.com/google/go-cmp/cmp"
)

// struct outer { u8 first; union { u16 a; struct { u8 b; u8 bits:3, sign:5; }; }; u8 pad; struct inner { u32 deep; } in; }
func outer() *btf.Struct {
	u8, u16, u32 := &btf.Int{Size: 1}, &btf.Int{Size: 2}, &btf.Int{Size: 4}
	anonymous := &btf.Struct{Size: 2, Members: []btf.Member{
		{Name: "b", Type: u8}, {Name: "bits", Type: u8, Offset: 8, BitfieldSize: 3}, {Name: "sign", Type: u8, Offset: 11, BitfieldSize: 5},
	}}
	union := &btf.Union{Size: 2, Members: []btf.Member{{Name: "a", Type: u16}, {Type: anonymous}}}
	return &btf.Struct{Name: "outer", Size: 8, Members: []btf.Member{
		{Name: "first", Type: u8},
		{Type: union, Offset: 8},
		{Name: "pad", Type: u8, Offset: 24},
		{Name: "in", Type: &btf.Struct{Name: "inner", Size: 4, Members: []btf.Member{{Name: "deep", Type: u32}}}, Offset: 32},
	}}
}

// Members are found wherever they are, and read as what they are.
func TestFind(t *testing.T) {
	memory := []byte{1, 2, 0b10101_011, 4, 0x10, 0x20, 0x30, 0x40}
	for path, want := range map[string]uint64{
		"first": 1, "a": 0xab02, "b": 2, "bits": 3, "sign": 0b10101, "in.deep": 0x40302010, "in": 0x40302010,
	} {
		f, ok := Find(outer(), path)
		if got := f.Number(memory); !ok || got != want {
			t.Errorf("%s is %#x instead of %#x, found: %t", path, got, want, ok)
		}
	}
	for _, path := range []string{"", "deep", "first.deep", "in.first", "c"} {
		if f, ok := Find(outer(), path); ok || f != (Field{}) || f.Number(memory) != 0 {
			t.Errorf("%q is found at %+v", path, f)
		}
	}
	deep, _ := Find(outer(), "in.deep")
	if got := deep.Within(8).Bytes(append(make([]byte, 8), memory...)); !cmp.Equal(got, memory[4:]) {
		t.Errorf("in another struct it is %v", got)
	}
	bits, _ := Find(outer(), "bits")
	if got := bits.AppendTo(nil, memory); !cmp.Equal(got, []byte{3, 0, 0, 0, 0, 0, 0, 0}) {
		t.Errorf("bits are %v", got)
	}
}

// The rest leaves nothing out but what was named.
func TestRest(t *testing.T) {
	memory := []byte{1, 2, 3, 4, 5, 6, 7, 8}
	for _, test := range []struct {
		but  []string
		want []byte
	}{
		{nil, memory},
		{[]string{"a", "not there"}, []byte{1, 4, 5, 6, 7, 8}},
		{[]string{"sign", "in"}, []byte{1, 2, 4}},
		{[]string{"first", "a", "pad", "in"}, nil},
	} {
		var got []byte
		for _, f := range Rest(outer(), test.but) {
			got = f.AppendTo(got, memory)
		}
		if !cmp.Equal(got, test.want) {
			t.Errorf("without %v it is %v instead of %v", test.but, got, test.want)
		}
	}
}
