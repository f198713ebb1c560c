package procfs

import (
	"os"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate/image"
)

// What the reader says once it has learned is what smaps says, also of flags
// that change without a mapping being split.
func TestFlagReader(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	reader, err := NewFlagReader()
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	all, err := unix.Mmap(-1, 0, 1<<20, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(all)
	memory := all[1<<16 : 1<<19] // between two others it is never merged with a neighbour
	if err := unix.Mprotect(memory, unix.PROT_READ|unix.PROT_WRITE); err != nil {
		t.Fatal(err)
	}
	start := uint64(uintptr(unsafe.Pointer(&memory[0])))
	p := Process{os.Getpid()}
	for _, step := range []struct {
		advice int
		flag   image.VMFlags
	}{
		{unix.MADV_DONTFORK, image.FlagDontFork},
		{unix.MADV_DONTDUMP, image.FlagDontDump},
		{unix.MADV_WIPEONFORK, image.FlagWipeOnFork},
		{unix.MADV_SEQUENTIAL, image.FlagSequential},
	} {
		for range 2 { // the second time without smaps
			if err := unix.Madvise(memory, step.advice); err != nil {
				t.Fatal(err)
			}
			quick, err := reader.Flags(p)
			if err != nil {
				t.Fatal(err)
			}
			smaps, err := p.Smaps()
			if err != nil {
				t.Fatal(err)
			}
			if quick[start].Image() != smaps[start].Image() || quick[start].Image()&step.flag == 0 {
				t.Errorf("flags %q, smaps says %q", quick[start], smaps[start])
			}
		}
	}
	known := make(map[uint64]kernelVMA)
	reader.mu.Lock()
	for flags := range reader.learned {
		known[flags] = kernelVMA{flags: flags}
	}
	reader.mu.Unlock()
	if _, ok := reader.translate(known); !ok || len(known) < 5 {
		t.Errorf("the reader has learned %d values", len(known))
	}
}
