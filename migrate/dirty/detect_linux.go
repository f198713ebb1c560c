package dirty

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate/image"
)

// A Kind is one way of tracking.
type Kind string

const (
	KindAsync     Kind = "userfaultfd"
	KindSoftDirty Kind = "soft-dirty"
)

// ErrNoTracker says that this kernel can tell in no way which pages change.
var ErrNoTracker = fmt.Errorf("no dirty tracking: it needs PAGEMAP_SCAN with asynchronous userfaultfd write protection (Linux 6.7) or CONFIG_MEM_SOFT_DIRTY: %w", errors.ErrUnsupported)

// Detect tries the trackers on memory of its own and returns the better one
// that works. The answer does not change while the kernel runs.
var Detect = sync.OnceValues(detect)

func detect() (Kind, error) {
	if tryAsync() == nil {
		return KindAsync, nil
	}
	if trySoftDirty() == nil {
		return KindSoftDirty, nil
	}
	return "", ErrNoTracker
}

// tried is the memory on which a tracker is tried: of a process of our own, so
// that nobody else's bits are cleared.
const triedPages = 4

func mapTried() ([]byte, error) {
	memory, err := unix.Mmap(-1, 0, triedPages*image.PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, err
	}
	for page := range triedPages {
		memory[page*image.PageSize] = 1
	}
	return memory, nil
}

// tryAsync writes to the second page of four and expects to be told of it.
func tryAsync() error {
	memory, err := mapTried()
	if err != nil {
		return err
	}
	defer unix.Munmap(memory)
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK|UserModeOnly, 0, 0)
	if errno != 0 {
		return errno
	}
	a, err := NewAsync(os.NewFile(fd, "userfaultfd"), os.Getpid())
	if err != nil {
		return err
	}
	defer a.Close()
	start := addressOf(memory)
	mappings := []image.Mapping{{AddressRange: Range{Start: start, End: start + uint64(len(memory))}, Backing: image.BackingAnonymous}}
	if _, err := a.Collect(context.Background(), mappings); err != nil {
		return err
	}
	memory[image.PageSize] = 2
	changes, err := a.Collect(context.Background(), mappings)
	if err != nil {
		return err
	}
	want := Range{Start: start + image.PageSize, End: start + 2*image.PageSize}
	if c := changes[0]; len(c.Fresh) != 0 || len(c.Content) != 1 || c.Content[0] != want {
		return fmt.Errorf("userfaultfd write protection: %+v instead of %+v", changes[0], want)
	}
	return nil
}

// trySoftDirty does the same: clearing the bits succeeds also on a kernel
// without them.
func trySoftDirty() error {
	memory, err := mapTried()
	if err != nil {
		return err
	}
	defer unix.Munmap(memory)
	pagemap, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return err
	}
	defer pagemap.Close()
	bits := func() (set uint, err error) {
		entries := make([]byte, triedPages*entryBytes)
		if _, err := pagemap.ReadAt(entries, int64(addressOf(memory)/image.PageSize*entryBytes)); err != nil {
			return 0, err
		}
		for page := range triedPages {
			if binary.LittleEndian.Uint64(entries[page*entryBytes:])&entrySoftDirty != 0 {
				set |= 1 << page
			}
		}
		return set, nil
	}
	if err := clearBits("/proc/self/clear_refs"); err != nil {
		return err
	}
	if before, err := bits(); err != nil || before != 0 {
		return errors.Join(err, fmt.Errorf("soft-dirty bits %b after clearing", before))
	}
	memory[image.PageSize] = 2
	if after, err := bits(); err != nil || after != 1<<1 {
		return errors.Join(err, fmt.Errorf("soft-dirty bits %b after a write", after))
	}
	return nil
}
