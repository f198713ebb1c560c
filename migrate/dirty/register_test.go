package dirty

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate/image"
)

// A mapping that grows and shrinks while it is registered, by what was listed
// some time before, can be resized at any moment.
func TestResizedWhileRegistered(t *testing.T) {
	if err := tryAsync(); err != nil {
		t.Skip("not on this kernel: ", err)
	}
	const few, most = 4, 60
	at := func(first, n int) image.AddressRange {
		const base = 0x600000000000 // far from where anything else is mapped
		start := uint64(base + first*image.PageSize)
		return image.AddressRange{Start: start, End: start + uint64(n*image.PageSize)}
	}
	mapAt(t, at(0, most+2))
	t.Cleanup(func() { unmap(t, at(0, most+2)) })
	// It grows within a hole between two others that it is never joined with.
	for _, page := range []int{0, most + 1} {
		protect(t, at(page, 1), unix.PROT_READ)
	}
	unmap(t, at(1+few, most-few))
	var listed []image.Mapping
	for _, r := range []Range{at(0, 1), at(1, few), at(most+1, 1)} {
		listed = append(listed, image.Mapping{AddressRange: r, Backing: image.BackingAnonymous})
	}
	stop, resized := make(chan struct{}), make(chan error, 1)
	go func() {
		var err error
		for n := few; err == nil; {
			next := few + (n*7+3)%(most-few)
			err = resize(at(1, n), next)
			n = next
			select {
			case <-stop:
				resized <- err
				return
			default:
			}
		}
		resized <- err
	}()
	for range 300 {
		t.Run("", func(t *testing.T) {
			if _, err := newTracker(t, KindAsync).Collect(t.Context(), listed); err != nil {
				t.Fatal(err)
			}
		})
	}
	close(stop)
	if err := <-resized; err != nil {
		t.Error("resizing:", err)
	}
}

// A mapping that came since the others were listed, where one of them ended, is
// registered as a whole.
func TestReplacedWhileRegistered(t *testing.T) {
	if err := tryAsync(); err != nil {
		t.Skip("not on this kernel: ", err)
	}
	at := func(first, n int) image.AddressRange {
		const base = 0x610000000000 // far from where anything else is mapped
		start := uint64(base + first*image.PageSize)
		return image.AddressRange{Start: start, End: start + uint64(n*image.PageSize)}
	}
	known, fresh, above := at(0, 8), at(20, 4), at(30, 4)
	mapAt(t, known)
	mapAt(t, above)
	t.Cleanup(func() { unmap(t, at(0, 40)) })
	var listed []image.Mapping
	for _, r := range []Range{known, fresh, above} {
		listed = append(listed, image.Mapping{AddressRange: r, Backing: image.BackingAnonymous})
	}
	a := newTracker(t, KindAsync).(*Async)
	if _, err := a.Collect(t.Context(), []image.Mapping{listed[0], listed[2]}); err != nil {
		t.Fatal(err)
	}
	mapAt(t, fresh)
	unmap(t, known)
	replaced := at(4, 12)
	mapAt(t, replaced)
	if protectable, err := a.registerAll(listed, []int{1}); err != nil || !protectable[1] {
		t.Fatalf("registering: %v, %v", protectable, err)
	}
	if err := resize(replaced, 6); err != nil {
		t.Error("resizing:", err)
	}
	if err := resize(at(4, 6), 14); err != nil {
		t.Error("resizing:", err)
	}
}

func mapAt(t *testing.T, r Range) {
	t.Helper()
	_, _, errno := unix.Syscall6(unix.SYS_MMAP, uintptr(r.Start), uintptr(r.Bytes()), readWrite,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_FIXED, ^uintptr(0), 0)
	if errno != 0 {
		t.Fatal(errno)
	}
}

func unmap(t *testing.T, r Range) {
	t.Helper()
	if _, _, errno := unix.Syscall(unix.SYS_MUNMAP, uintptr(r.Start), uintptr(r.Bytes()), 0); errno != 0 {
		t.Fatal(errno)
	}
}

func protect(t *testing.T, r Range, protection uintptr) {
	t.Helper()
	if _, _, errno := unix.Syscall(unix.SYS_MPROTECT, uintptr(r.Start), uintptr(r.Bytes()), protection); errno != 0 {
		t.Fatal(errno)
	}
}

// resize makes a mapping larger or smaller where it is.
func resize(r Range, pages int) error {
	_, _, errno := unix.Syscall6(unix.SYS_MREMAP, uintptr(r.Start), uintptr(r.Bytes()), uintptr(pages*image.PageSize), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
