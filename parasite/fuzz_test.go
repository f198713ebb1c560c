package parasite

import (
	"encoding/binary"
	"fmt"
	"testing"
)

func FuzzParseMapping(f *testing.F) {
	f.Add("7ffd1c5f2000-7ffd1c5f4000 r-xp 00000000 00:00 0                          [vdso]\n")
	f.Add("00400000-00452000 r--s 00001000 fe:00 4711 /usr/bin/a b (deleted)\n")
	f.Add("ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]")
	f.Fuzz(func(t *testing.T, line string) {
		m, err := parseMapping(line)
		if err != nil {
			return
		}
		permissions := map[bool]string{true: "x", false: "-"}[m.executable] + map[bool]string{true: "s", false: "p"}[m.shared]
		again, err := parseMapping(fmt.Sprintf("%x-%x r-%s 0 00:00 0 %s\n", m.start, m.end, permissions, m.name))
		if m.start >= m.end || err != nil || again != m {
			t.Errorf("%q: %+v, and written again %+v, %v", line, m, again, err)
		}
	})
}

// What is concluded from a piece of code holds with more of it, since what
// lies beyond the piece counts as reading.
func FuzzR10Dies(f *testing.F) {
	f.Add([]byte{0x48, 0x3d, 0x00, 0xf0, 0xff, 0xff, 0x77, 0x01, 0xc3, 0xf7, 0xd8, 0xc3}, 0) // cmp; ja 1f; ret; 1: neg; ret
	f.Add([]byte{0xc3, 0x90, 0x74, 0xfc, 0xeb, 0xfb}, 2)                                     // backwards
	f.Add([]byte{0x41, 0x89, 0xca, 0x0f, 0x05}, 0)                                           // mov %ecx,%r10d; syscall
	f.Add([]byte{0xe9, 0xff, 0xff, 0xff, 0x7f}, 0)                                           // jmp far away
	f.Fuzz(func(t *testing.T, code []byte, at int) {
		whole := r10Dies(code, at)
		if part := r10Dies(code[:len(code)/2], at); part && !whole {
			t.Errorf("%x at %d: it dies in the first half, and not in all of it", code, at)
		}
	})
}

func FuzzELFEnd(f *testing.F) {
	header := make([]byte, elfHeaderBytes)
	copy(header, "\x7fELF")
	binary.LittleEndian.PutUint64(header[0x28:], 4096)
	binary.LittleEndian.PutUint16(header[0x3a:], 64)
	binary.LittleEndian.PutUint16(header[0x3c:], 20)
	f.Add(header, uint32(8192))
	f.Fuzz(func(t *testing.T, content []byte, limit uint32) {
		header := make([]byte, elfHeaderBytes)
		copy(header, content)
		if end := elfEnd(header, uint64(limit)); end < 0 || uint64(end) > uint64(limit)+1<<32 {
			t.Errorf("%x in %d bytes: ends at %d", header, limit, end)
		}
	})
}
