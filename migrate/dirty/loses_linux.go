package dirty

import (
	"context"
	"errors"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate/image"
)

// LosesWrites reports whether this kernel's soft-dirty bits miss pages that were
// written, as those of Linux 6.0 and later do: mprotect(2) makes pages of a mapping
// that is new since the bits were cleared writable without a fault, as all of it counts
// as written (can_change_pte_writable, mm/mprotect.c), and then forgets that it is new
// when it joins it with another mapping (vma_merge, mm/mmap.c). It is tried out, on
// memory of ours; the answer does not change while the kernel runs.
//
// What is missed shows when all of the memory is compared.
var LosesWrites = sync.OnceValues(tryMerging)

func tryMerging() (bool, error) {
	const pages = 8
	memory, err := unix.Mmap(-1, 0, pages*image.PageSize, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return false, err
	}
	defer unix.Munmap(memory)
	part := func(first, end int) []byte { return memory[first*image.PageSize : end*image.PageSize] }
	const readWrite = unix.PROT_READ | unix.PROT_WRITE
	protect := func(first, end, protection int) {
		err = errors.Join(err, unix.Mprotect(part(first, end), protection))
	}
	s, openErr := NewSoftDirty(os.Getpid())
	if openErr != nil {
		return false, openErr
	}
	defer s.Close()
	protect(1, 5, readWrite)
	if err != nil {
		return false, err
	}
	for page := 1; page < 5; page++ {
		memory[page*image.PageSize] = 1
	}
	start := addressOf(memory)
	m := []image.Mapping{{AddressRange: Range{Start: start + image.PageSize, End: start + 5*image.PageSize}, Backing: image.BackingAnonymous}}
	if _, err := s.Collect(context.Background(), m); err != nil {
		return false, err
	}
	protect(3, 5, unix.PROT_READ)
	_, _, errno := unix.Syscall6(unix.SYS_MMAP, uintptr(start+5*image.PageSize), image.PageSize, readWrite,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_FIXED, ^uintptr(0), 0)
	if errno != 0 {
		return false, errno
	}
	protect(5, 6, unix.PROT_READ)
	protect(1, 3, unix.PROT_NONE)
	protect(3, 5, readWrite)
	if err != nil {
		return false, err
	}
	memory[4*image.PageSize] = 2
	protect(1, 3, readWrite)
	if err != nil {
		return false, err
	}
	changes, err := s.Final(context.Background(), m)
	if err != nil {
		return false, err
	}
	found := slices.ContainsFunc(changes[0].Content, func(r Range) bool {
		return r.Start <= start+4*image.PageSize && start+4*image.PageSize < r.End
	})
	return !found, nil
}
