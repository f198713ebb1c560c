package dirty

import (
	"errors"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate/image"
)

// The program runs on while its mappings are registered, and since they were
// listed they may have grown, been joined with new neighbours, or given way to
// others. A mapping of which a part is registered is one in two parts, and
// mremap(2) of both parts answers EFAULT. So what is registered are not the
// mappings but the whole address space, or as much of it at once as can be.

// registerAll registers those of the mappings, which are in order, whose places
// are in fresh, and reports which can be protected.
func (a *Async) registerAll(mappings []image.Mapping, fresh []int) (map[int]bool, error) {
	protectable := make(map[int]bool, len(fresh))
	if len(fresh) == 0 {
		return protectable, nil
	}
	return protectable, a.registerRun(mappings, 0, len(mappings), fresh, protectable)
}

// registerRun registers mappings from..to-1, of which some are fresh, and what
// lies around them up to the next ones, at once if it can, else in halves.
func (a *Async) registerRun(mappings []image.Mapping, from, to int, fresh []int, protectable map[int]bool) error {
	around := Range{Start: min(lowestAddress, mappings[from].Start), End: max(endOfAddresses, mappings[to-1].End)}
	if from > 0 {
		around.Start = mappings[from-1].End
	}
	if to < len(mappings) {
		around.End = mappings[to].Start
	}
	err := a.register(around)
	switch {
	case err == nil:
		for _, i := range fresh {
			protectable[i] = true
		}
		return nil
	case !unregistrable(err):
		return err
	case to-from > 1:
		middle := (from + to) / 2
		upper, _ := slices.BinarySearch(fresh, middle)
		if err := a.registerRun(mappings, from, middle, fresh[:upper], protectable); err != nil {
			return err
		}
		return a.registerRun(mappings, middle, to, fresh[upper:], protectable)
	case len(fresh) == 0:
		return nil
	}
	// Something beside it cannot be registered, or it itself.
	exactly := mappings[from].AddressRange
	switch err := a.register(exactly); {
	case err == nil:
		protectable[from] = true
		return a.registerRests(exactly)
	case !unregistrable(err):
		return err
	}
	return nil // it counts as fresh each time
}

// What programs can map unless they ask for more.
const (
	lowestAddress  = 64 << 10 // vm.mmap_min_addr
	endOfAddresses = 1<<47 - image.PageSize
)

func (a *Async) register(r Range) error { return register(int(a.uffd.Fd()), r) }

// unregistrable reports that a range has nothing in it (any more), or something
// that cannot be registered: what cannot be written, or what the program itself
// has registered with a userfaultfd of its own.
func unregistrable(err error) bool {
	return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOMEM) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EBUSY)
}

// registerRests registers the rests of mappings that reach beyond a range that
// was registered by itself. What is in them counts as written in the next round,
// and what is not in them as gone in the last one.
func (a *Async) registerRests(r Range) error {
	vmas, err := a.proc.Maps()
	if err != nil {
		return err
	}
	for i := 1; i < len(vmas); i++ {
		before, after := &vmas[i-1], &vmas[i]
		if before.End != after.Start || before.Prot != after.Prot || before.Shared || after.Shared ||
			before.Inode != 0 || after.Inode != 0 || before.Name != after.Name {
			continue
		}
		var rest Range
		switch before.End {
		case r.End:
			rest = Range{Start: after.Start, End: after.End}
		case r.Start:
			rest = Range{Start: before.Start, End: before.End}
		default:
			continue
		}
		// If it is gone again, or cannot be registered, it is for the next round.
		if err := a.register(rest); err != nil && !unregistrable(err) {
			return err
		}
	}
	return nil
}
