package resource

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate/image"
)

// eventFile: eventfd(2).
var eventFile = fileKind{
	dump: func(d *ProcessDump, o *openFile, f *image.File) error {
		text, ok := o.info.Value("eventfd-count")
		if !ok {
			return errors.New("no count in fdinfo")
		}
		count, err := strconv.ParseUint(text, 16, 64)
		if err != nil {
			return fmt.Errorf("count %q: %w", text, err)
		}
		f.Event = &image.Event{Count: count}
		if text, ok := o.info.Value("eventfd-semaphore"); ok {
			f.Event.Semaphore = text == "1"
			return nil
		}
		// Before Linux 6.5 it does not say. What is moved is frozen, so trying
		// it and putting it back disturbs nobody; a preflight does not try.
		if d.Inspect {
			return nil
		}
		fd, err := o.borrow()
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		f.Event.Semaphore, err = isSemaphore(fd, count)
		return err
	},
	open: func(_ *TreeRestore, f *image.File) (int, error) {
		flags := unix.EFD_CLOEXEC
		if f.Event.Semaphore {
			flags |= unix.EFD_SEMAPHORE
		}
		fd, err := unix.Eventfd(0, flags)
		if err != nil {
			return 0, err
		}
		if err := addEvents(fd, f.Event.Count); err != nil {
			return 0, err
		}
		return fd, setStatusFlags(fd, f.Flags)
	},
}

// isSemaphore finds out whether reading takes one or all. Afterwards the count
// is what it was.
func isSemaphore(fd int, count uint64) (bool, error) {
	added := uint64(0)
	if count < 2 {
		added = 2 - count
	}
	if err := addEvents(fd, added); err != nil {
		return false, err
	}
	raw := make([]byte, 8)
	if _, err := unix.Read(fd, raw); err != nil {
		return false, fmt.Errorf("reading an eventfd: %w", err)
	}
	if got := binary.NativeEndian.Uint64(raw); got != 1 {
		return false, addEvents(fd, count)
	}
	for range added - min(added, 1) { // what was added, less what was read
		if _, err := unix.Read(fd, raw); err != nil {
			return true, fmt.Errorf("reading an eventfd: %w", err)
		}
	}
	if added == 0 {
		return true, addEvents(fd, 1)
	}
	return true, nil
}

func addEvents(fd int, n uint64) error {
	if n == 0 {
		return nil
	}
	if _, err := unix.Write(fd, binary.NativeEndian.AppendUint64(nil, n)); err != nil {
		return fmt.Errorf("adding %d to an eventfd: %w", n, err)
	}
	return nil
}
