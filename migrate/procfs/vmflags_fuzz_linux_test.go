package procfs

import (
	"encoding/binary"
	"slices"
	"testing"
)

// Every mapping is one of those that were written, and none gets lost.
func FuzzKernelVMAs(f *testing.F) {
	record := func(start, end, flags uint64) []byte {
		var data []byte
		for _, word := range []uint64{start, end, flags} {
			data = binary.NativeEndian.AppendUint64(data, word)
		}
		return data
	}
	first, second := record(0x400000, 0x401000, 0x8000075), record(0x7ffffffde000, 0x7ffffffff000, 0x100173)
	if vmas := kernelVMAs(slices.Concat(first, second)); len(vmas) != 2 || vmas[0x400000] != (kernelVMA{0x401000, 0x8000075}) {
		f.Fatalf("the seed is read as %#x", vmas)
	}
	f.Add(slices.Concat(first, second))
	f.Add(slices.Concat(first, record(0x400000, 0x402000, 0), second[:20])) // it grew meanwhile
	f.Fuzz(func(t *testing.T, data []byte) {
		vmas := kernelVMAs(data)
		starts := make(map[uint64]bool)
		for chunk := range slices.Chunk(data, kernelVMABytes) {
			if len(chunk) == kernelVMABytes {
				starts[binary.NativeEndian.Uint64(chunk)] = true
			}
		}
		if len(vmas) != len(starts) {
			t.Errorf("%d mappings at %d addresses", len(vmas), len(starts))
		}
		for start, vma := range vmas {
			written := record(start, vma.end, vma.flags)
			if !slices.ContainsFunc(slices.Collect(slices.Chunk(data, kernelVMABytes)), func(chunk []byte) bool { return slices.Equal(chunk, written) }) {
				t.Errorf("nobody wrote %#x: %#x", start, vma)
			}
		}
	})
}
