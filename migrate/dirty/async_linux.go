package dirty

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/migrate/procfs"
)

// Async tracks by userfaultfd write protection and PAGEMAP_SCAN
// (Documentation/admin-guide/mm/pagemap.rst, "Pagemap Scan IOCTL").
//
//	Collect:  registered? ──no──▶ register, everything counts as written
//	              │yes
//	              ▼
//	          find written pages that hold something, and protect them again, at once
//	Final:    find written pages, then look which of them hold something
type Async struct {
	proc    procfs.Process
	uffd    *os.File
	pagemap *os.File
	guards  bool // the kernel tells guard pages apart
	// copies are the private copies of file pages that were reported. When such
	// a mapping gives one up, the kernel keeps the protection in place of the
	// page (zap_install_uffd_wp_if_needed, mm/memory.c), and it does not count
	// as written.
	copies []Range
	// tables are the parts of anonymous memory that have page tables, of which
	// pages that hold nothing are protected too.
	tables []Range
}

// NewAsync takes over a userfaultfd that was made inside process pid.
func NewAsync(uffd *os.File, pid int) (*Async, error) {
	// Only these: of the features that the kernel would return, some make the
	// target wait for a reader.
	arg := uffdioAPIArg{api: uffdAPI, features: uffdFeatureWPFault | uffdFeatureWPUnpopulated | uffdFeatureWPAsync}
	if err := openAPI(int(uffd.Fd()), &arg); err != nil {
		return nil, fmt.Errorf("asking userfaultfd for asynchronous write protection: %w", err)
	}
	pagemap, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", pid))
	if err != nil {
		return nil, err
	}
	a := &Async{proc: procfs.Process{PID: pid}, uffd: uffd, pagemap: pagemap}
	a.guards = a.knowsGuards()
	return a, nil
}

// knowsGuards reports whether the kernel knows the category at all (Linux 6.15).
func (a *Async) knowsGuards() bool {
	arg := scanArg{start: 0, end: image.PageSize, categoryAnyOfMask: pageIsPresent, returnMask: pageIsGuard}
	_, err := scanOnce(a.pagemap, &arg, make([]pageRegion, 1))
	return err == nil
}

var _ Tracker = (*Async)(nil)

// NeedsStop is false: protection and report are one step for each page.
func (a *Async) NeedsStop() bool { return false }

// SeesSharedWrites is true.
func (a *Async) SeesSharedWrites() bool { return true }

// Close unregisters everything, since it closes the last descriptor of the
// userfaultfd. The kernel walks the page tables for it: some 14 ms a GiB.
func (a *Async) Close() error { return errors.Join(a.uffd.Close(), a.pagemap.Close()) }

// Collect implements [Tracker].
func (a *Async) Collect(ctx context.Context, mappings []image.Mapping) ([]Changes, error) {
	all := make([]Changes, len(mappings))
	var fresh []int
	for i := range mappings {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		m := &mappings[i]
		if unwritable(m) {
			continue
		}
		again := scanArg{
			flags:             scanCheckWPAsync | scanWPMatching,
			categoryMask:      pageIsWritten,
			categoryAnyOfMask: holding(m),
		}
		err := a.scan(m.AddressRange, again, m, &all[i])
		if errors.Is(err, unix.EPERM) { // it was made since, at least in part
			fresh = append(fresh, i)
			continue
		}
		if err == nil {
			err = a.protectHoles(m, &all[i])
		}
		if err != nil {
			return nil, fmt.Errorf("scanning %#x-%#x: %w", m.Start, m.End, err)
		}
	}
	protectable, err := a.registerAll(mappings, fresh)
	if err != nil {
		return nil, fmt.Errorf("registering new mappings: %w", err)
	}
	for _, i := range fresh {
		m := &mappings[i]
		all[i] = Changes{Fresh: []Range{m.AddressRange}}
		first := scanArg{categoryAnyOfMask: holding(m)}
		if protectable[i] {
			first.flags = scanWPMatching
		}
		a.tables = subtract(a.tables, all[i].Fresh)
		err := a.scan(m.AddressRange, first, m, &all[i])
		if err == nil && protectable[i] {
			err = a.protectHoles(m, &all[i])
		}
		if err != nil {
			return nil, fmt.Errorf("scanning %#x-%#x: %w", m.Start, m.End, err)
		}
	}
	return all, a.recheckCopies(mappings, all)
}

// protectHoles protects what lies between pages that hold something, where the
// page tables for it are there: a page that was never touched counts as written,
// and in fragmented memory those would make the last scan look at everything.
func (a *Async) protectHoles(m *image.Mapping, c *Changes) error {
	if m.Shared || m.Backing != image.BackingAnonymous {
		return nil
	}
	// What is no longer tracked is passed over, and fresh the next time.
	const kinds = pageIsPresent | pageIsSwapped
	arg := scanArg{flags: scanWPMatching, categoryMask: pageIsWritten, returnMask: kinds | a.returned(m)}
	found := Changes{}
	met := subtract(clip(tablesOf(c.Content), m.AddressRange), a.tables)
	for _, r := range met {
		err := a.walk(r, arg, func(p *pageRegion) {
			if p.categories&kinds != 0 { // since it was looked at
				found.sort(m, p)
			}
		})
		if err != nil {
			return err
		}
	}
	c.Content, c.Guards = join(append(subtract(c.Content, found.Guards), found.Content...)), join(append(subtract(c.Guards, found.Content), found.Guards...))
	a.tables = join(append(a.tables, met...))
	return nil
}

// tablesOf is the memory for which the page tables have entries that have these
// ranges, which are in order.
func tablesOf(ranges []Range) []Range {
	const mask = 1<<21 - 1 // what a page table maps
	var tables []Range
	for _, r := range ranges {
		start, end := r.Start&^mask, (r.End+mask)&^mask
		if n := len(tables); n > 0 && start <= tables[n-1].End {
			tables[n-1].End = end
			continue
		}
		tables = append(tables, Range{Start: start, End: end})
	}
	return tables
}

// unwritable reports that nothing can ever be stored through a mapping: one of
// a file or object that was opened for reading only or is sealed. The kernel
// refuses to register it.
func unwritable(m *image.Mapping) bool { return m.Shared && m.Flags&image.FlagMayWrite == 0 }

// Final implements [Tracker]. The mappings are divided among the processors.
func (a *Async) Final(ctx context.Context, mappings []image.Mapping) ([]Changes, error) {
	all := make([]Changes, len(mappings))
	pieces := cut(mappings, runtime.GOMAXPROCS(0))
	results := make([]Changes, len(pieces))
	group, _ := errgroup.WithContext(ctx)
	group.SetLimit(runtime.GOMAXPROCS(0))
	for i, p := range pieces {
		group.Go(func() error {
			m := mappings[p.mapping]
			m.AddressRange = p.Range
			var err error
			if results[i], err = a.final(&m); err != nil {
				return fmt.Errorf("scanning %#x-%#x: %w", m.Start, m.End, err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	for i, p := range pieces {
		c, r := &all[p.mapping], &results[i]
		c.Fresh = append(c.Fresh, r.Fresh...)
		c.Content = append(c.Content, r.Content...)
		c.Gone = append(c.Gone, r.Gone...)
		c.Guards = append(c.Guards, r.Guards...)
	}
	return all, a.recheckCopies(mappings, all)
}

// recheckCopies looks whether the private copies of file pages are still
// there, and remembers those that are.
func (a *Async) recheckCopies(mappings []image.Mapping, all []Changes) error {
	var copies []Range
	for i := range mappings {
		m, c := &mappings[i], &all[i]
		if !copiesFile(m) {
			continue
		}
		silent := clip(a.copies, m.AddressRange)
		for _, reported := range [][]Range{c.Fresh, c.Content, c.Gone} {
			silent = subtract(silent, reported)
		}
		for _, r := range silent {
			if err := a.recheck(r, c); err != nil {
				return fmt.Errorf("scanning %#x-%#x: %w", r.Start, r.End, err)
			}
		}
		c.Gone, c.Content = join(c.Gone), join(c.Content)
		copies = append(copies, subtract(join(append(silent, c.Content...)), c.Gone)...)
	}
	a.copies = copies
	return nil
}

func (a *Async) recheck(r Range, c *Changes) error {
	var there []Range
	const kinds = pageIsPresent | pageIsSwapped
	err := a.walk(r, scanArg{categoryAnyOfMask: kinds, returnMask: kinds | pageIsFile}, func(p *pageRegion) {
		switch {
		case p.categories&pageIsSwapped != 0:
			// A copy on a swap device looks like the protection of a page that
			// was given up. Read once more, it is right in either case.
			c.Content = append(c.Content, Range{Start: p.start, End: p.end})
			there = push(there, p.start, p.end)
		case p.categories&pageIsFile == 0:
			there = push(there, p.start, p.end)
		}
	})
	c.Gone = append(c.Gone, subtract([]Range{r}, there)...)
	return err
}

func (a *Async) final(m *image.Mapping) (Changes, error) {
	if unwritable(m) {
		return Changes{}, nil
	}
	// Asked for this category alone, the kernel takes a fast path over page
	// tables whose entries are all protected.
	var written []Range
	arg := scanArg{flags: scanCheckWPAsync, categoryMask: pageIsWritten, returnMask: pageIsWritten}
	err := a.walk(m.AddressRange, arg, func(r *pageRegion) {
		written = push(written, r.start, r.end)
	})
	c := Changes{}
	if errors.Is(err, unix.EPERM) {
		c.Fresh = []Range{m.AddressRange}
		return c, a.scan(m.AddressRange, scanArg{categoryAnyOfMask: holding(m)}, m, &c)
	}
	if err != nil {
		return c, err
	}
	if m.Shared {
		c.Content = written
		return c, nil
	}
	// Pages that never held anything count as written: they were not there to be
	// protected. In fragmented memory they make so many ranges that asking for
	// each of them costs more than asking for all at once.
	ask := written
	if len(written) > fewRanges {
		ask = []Range{{Start: written[0].Start, End: written[len(written)-1].End}}
	}
	// What is there decides what is gone, so it is asked without regard to what
	// was written: the kernel's two ways to tell that do not always agree.
	var there []Range
	rest := written
	for _, w := range ask {
		arg := scanArg{categoryAnyOfMask: pageIsPresent | pageIsSwapped, returnMask: a.returned(m)}
		err := a.walk(w, arg, func(r *pageRegion) {
			there = push(there, r.start, r.end)
			for len(rest) > 0 && rest[0].End <= r.start {
				rest = rest[1:]
			}
			for _, part := range rest {
				if part.Start >= r.end {
					break
				}
				c.sort(m, &pageRegion{start: max(part.Start, r.start), end: min(part.End, r.end), categories: r.categories})
			}
		})
		if err != nil {
			return c, err
		}
	}
	c.Gone = join(append(c.Gone, subtract(written, there)...))
	return c, nil
}

// fewRanges are as many as are asked for one by one: a call takes about as long
// as looking at a few hundred pages.
const fewRanges = 64

// holding are the categories of pages that are of interest at all. Those of
// private memory hold something. A page of a shared mapping may have been
// written and unmapped again, while the object holds what was written: there
// the absent pages are protected too, although that takes page tables.
func holding(m *image.Mapping) uint64 {
	if m.Shared {
		return 0
	}
	return pageIsPresent | pageIsSwapped
}

// returned are the categories that sort wants to know. Whether a page is a file's
// the kernel learns from the page itself (pagemap_page_category,
// fs/proc/task_mmu.c): several times the work that all else takes.
func (a *Async) returned(m *image.Mapping) uint64 {
	var categories uint64
	if a.guards {
		categories |= pageIsGuard
	}
	if copiesFile(m) {
		categories |= pageIsFile
	}
	return categories
}

// scan walks over r and sorts what it finds into c.
func (a *Async) scan(r Range, arg scanArg, m *image.Mapping, c *Changes) error {
	arg.returnMask = a.returned(m)
	return a.walk(r, arg, func(region *pageRegion) { c.sort(m, region) })
}

// sort puts a stretch of equal pages where it belongs.
func (c *Changes) sort(m *image.Mapping, r *pageRegion) {
	switch {
	case r.categories&pageIsGuard != 0:
		c.Guards = push(c.Guards, r.start, r.end)
	case copiesFile(m) && r.categories&pageIsFile != 0:
		// The file's own page: the destination has it too.
		c.Gone = push(c.Gone, r.start, r.end)
	default:
		c.Content = push(c.Content, r.start, r.end)
	}
}

// How many stretches the kernel reports at once.
const scanVector = 1024

// walk runs a scan over all of r.
func (a *Async) walk(r Range, arg scanArg, found func(*pageRegion)) error {
	vec := make([]pageRegion, scanVector)
	for at := r.Start; at < r.End; {
		arg.start, arg.end = at, r.End
		n, err := scanOnce(a.pagemap, &arg, vec)
		if err != nil {
			return err
		}
		for i := range n {
			found(&vec[i])
		}
		if arg.walkEnd <= at {
			return fmt.Errorf("scan stands still at %#x", at)
		}
		at = arg.walkEnd
	}
	return nil
}

// piece is a part of one mapping.
type piece struct {
	mapping int
	Range
}

// cut divides mappings into pieces for n processors to work on.
func cut(mappings []image.Mapping, n int) []piece {
	const most = 256 << 20 // so that the pieces of one large mapping spread
	var pieces []piece
	for i := range mappings {
		for at := mappings[i].Start; at < mappings[i].End; {
			end := min(mappings[i].End, at+most)
			if n == 1 {
				end = mappings[i].End
			}
			pieces = append(pieces, piece{i, Range{Start: at, End: end}})
			at = end
		}
	}
	return pieces
}
