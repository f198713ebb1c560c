package dirty

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate/image"
)

// Every test here runs with each tracker that this kernel has.
func forEachTracker(t *testing.T, test func(t *testing.T, new func(t *testing.T) Tracker)) {
	ran := false
	for kind, try := range map[Kind]func() error{KindAsync: tryAsync, KindSoftDirty: trySoftDirty} {
		if err := try(); err != nil {
			t.Logf("%s: not on this kernel: %v", kind, err)
			continue
		}
		ran = true
		t.Run(string(kind), func(t *testing.T) {
			test(t, func(t *testing.T) Tracker { return newTracker(t, kind) })
		})
	}
	if !ran {
		t.Error("this kernel has neither tracker")
	}
}

func newTracker(t *testing.T, kind Kind) Tracker {
	t.Helper()
	var tracker Tracker
	var err error
	if kind == KindSoftDirty {
		tracker, err = NewSoftDirty(os.Getpid())
	} else {
		fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK|UserModeOnly, 0, 0)
		if errno != 0 {
			t.Fatal(errno)
		}
		tracker, err = NewAsync(os.NewFile(fd, "userfaultfd"), os.Getpid())
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tracker.Close(); err != nil {
			t.Error(err)
		}
	})
	return tracker
}

// A replica is what the destination would hold of some mappings: it knows
// nothing but what the tracker says.
type replica struct {
	t       *testing.T
	tracker Tracker
	memory  *os.File
	pages   map[uint64][]byte // content of pages that were copied
	guards  map[uint64]bool
	backing func(addr uint64) []byte // of a page that was not copied
}

func newReplica(t *testing.T, tracker Tracker) *replica {
	t.Helper()
	memory, err := os.Open("/proc/self/mem")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { memory.Close() })
	return &replica{
		t: t, tracker: tracker, memory: memory,
		pages: make(map[uint64][]byte), guards: make(map[uint64]bool),
		backing: func(uint64) []byte { return make([]byte, image.PageSize) },
	}
}

func each(ranges []Range, f func(addr uint64)) {
	for _, r := range ranges {
		for addr := r.Start; addr < r.End; addr += image.PageSize {
			f(addr)
		}
	}
}

// update applies what one look at the mappings has found.
func (r *replica) update(mappings []image.Mapping, look func() ([]Changes, error)) []Changes {
	r.t.Helper()
	changes, err := look()
	if err != nil {
		r.t.Fatal(err)
	}
	for i := range changes {
		c := &changes[i]
		each(c.Fresh, func(addr uint64) { delete(r.pages, addr); delete(r.guards, addr) })
		each(c.Gone, func(addr uint64) { delete(r.pages, addr); delete(r.guards, addr) })
		each(c.Guards, func(addr uint64) { delete(r.pages, addr); r.guards[addr] = true })
		each(c.Content, func(addr uint64) {
			delete(r.guards, addr)
			r.pages[addr] = r.read(addr)
		})
	}
	return changes
}

func (r *replica) collect(mappings ...image.Mapping) []Changes {
	r.t.Helper()
	return r.update(mappings, func() ([]Changes, error) { return r.tracker.Collect(r.t.Context(), mappings) })
}

func (r *replica) read(addr uint64) []byte {
	r.t.Helper()
	page := make([]byte, image.PageSize)
	if _, err := r.memory.ReadAt(page, int64(addr)); err != nil {
		r.t.Fatalf("reading %#x: %v", addr, err)
	}
	return page
}

// finish looks for the last time and compares everything.
func (r *replica) finish(mappings ...image.Mapping) []Changes {
	r.t.Helper()
	changes := r.update(mappings, func() ([]Changes, error) { return r.tracker.Final(r.t.Context(), mappings) })
	for i := range mappings {
		each([]Range{mappings[i].AddressRange}, func(addr uint64) {
			if r.guards[addr] {
				return // cannot be read, which is checked where guards are made
			}
			got, ok := r.pages[addr]
			if !ok {
				got = r.backing(addr)
			}
			if want := r.read(addr); !bytes.Equal(want, got) {
				r.t.Errorf("page %#x of %#x-%#x differs (copied: %v): % x... instead of % x...",
					addr, mappings[i].Start, mappings[i].End, ok, got[:8], want[:8])
			}
		})
	}
	return changes
}

func mapping(memory []byte) image.Mapping {
	start := addressOf(memory)
	return image.Mapping{AddressRange: Range{Start: start, End: start + uint64(len(memory))}, Backing: image.BackingAnonymous}
}

func mmap(t *testing.T, pages, prot, flags, fd int) []byte {
	t.Helper()
	memory, err := unix.Mmap(fd, 0, pages*image.PageSize, prot, flags)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(memory) })
	return memory
}

const readWrite = unix.PROT_READ | unix.PROT_WRITE

func anonymous(t *testing.T, pages int) []byte {
	t.Helper()
	return mmap(t, pages, readWrite, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, -1)
}

func pagesOf(ranges []Range, base uint64) []int {
	var pages []int
	each(ranges, func(addr uint64) { pages = append(pages, int((addr-base)/image.PageSize)) })
	return pages
}

func TestWrittenPagesOnly(t *testing.T) {
	forEachTracker(t, func(t *testing.T, new func(t *testing.T) Tracker) {
		memory := anonymous(t, 100)
		m := mapping(memory)
		r := newReplica(t, new(t))
		for _, page := range []int{3, 4, 50} {
			memory[page*image.PageSize] = 1
		}
		first := r.collect(m)[0]
		if got := pagesOf(first.Content, m.Start); !slices.Equal(got, []int{3, 4, 50}) || len(first.Fresh) != 1 {
			t.Errorf("first look: pages %v, fresh %v", got, first.Fresh)
		}
		if again := r.collect(m)[0]; len(again.Content)+len(again.Fresh)+len(again.Gone) != 0 {
			t.Errorf("nothing was written, but %+v", again)
		}
		memory[4*image.PageSize+5] = 7
		memory[99*image.PageSize] = 1
		if got := pagesOf(r.collect(m)[0].Content, m.Start); !slices.Equal(got, []int{4, 99}) {
			t.Errorf("pages %v instead of 4 and 99", got)
		}
		memory[3*image.PageSize] = 9
		r.finish(m)
	})
}

func TestPagesThatVanish(t *testing.T) {
	forEachTracker(t, func(t *testing.T, new func(t *testing.T) Tracker) {
		memory := anonymous(t, 64)
		m := mapping(memory)
		fill(memory, 1)
		r := newReplica(t, new(t))
		r.collect(m)
		if err := unix.Madvise(memory[8*image.PageSize:16*image.PageSize], unix.MADV_DONTNEED); err != nil {
			t.Fatal(err)
		}
		r.collect(m)
		// Gone and read since: not empty, but the page of zeros.
		gone := memory[30*image.PageSize : 40*image.PageSize]
		if err := unix.Madvise(gone, unix.MADV_DONTNEED); err != nil {
			t.Fatal(err)
		}
		if bytes.Count(gone, []byte{0}) != len(gone) {
			t.Fatal("what vanished is not zero")
		}
		// Gone and back with other content, and gone just before the end.
		memory[9*image.PageSize] = 5
		if err := unix.Madvise(memory[20*image.PageSize:23*image.PageSize], unix.MADV_DONTNEED); err != nil {
			t.Fatal(err)
		}
		// Read, and so mapped to the page of zeros, which no bit tells of.
		if memory[21*image.PageSize] != 0 {
			t.Fatal("a page that was given up holds something")
		}
		r.finish(m)
	})
}

func fill(memory []byte, seed byte) {
	for page := range len(memory) / image.PageSize {
		memory[page*image.PageSize] = seed + byte(page)
	}
}

// A mapping that takes the place of another is not mistaken for it.
func TestReplacedMapping(t *testing.T) {
	forEachTracker(t, func(t *testing.T, new func(t *testing.T) Tracker) {
		memory := anonymous(t, 16)
		m := mapping(memory)
		fill(memory, 1)
		r := newReplica(t, new(t))
		r.collect(m)
		remap(t, memory)
		memory[3*image.PageSize] = 77
		if c := r.collect(m)[0]; len(c.Fresh) == 0 {
			t.Errorf("the new mapping is not fresh: %+v", c)
		}
		remap(t, memory)
		memory[5*image.PageSize] = 78
		r.finish(m)
	})
}

// remap puts new, empty memory in the place of memory.
func remap(t *testing.T, memory []byte) {
	t.Helper()
	mapAt(t, mapping(memory).AddressRange)
}

func TestHugePages(t *testing.T) {
	forEachTracker(t, func(t *testing.T, new func(t *testing.T) Tracker) {
		const huge = 2 << 20
		all := anonymous(t, 4*huge/image.PageSize)
		skip := (huge - int(addressOf(all)%huge)) % huge
		memory := all[skip : skip+3*huge]
		if err := unix.Madvise(memory, unix.MADV_HUGEPAGE); err != nil {
			t.Fatal(err)
		}
		fill(memory, 3)
		m := mapping(memory)
		r := newReplica(t, new(t))
		r.collect(m)
		memory[700*image.PageSize+1] = 1
		if err := unix.Madvise(memory[huge:], unix.MADV_DONTNEED); err != nil {
			t.Fatal(err)
		}
		_ = bytes.Count(memory[2*huge:], []byte{1}) // maps the huge page of zeros
		r.finish(m)
	})
}

// Of a private mapping of a file only the private copies count.
func TestPrivateFileMapping(t *testing.T) {
	forEachTracker(t, func(t *testing.T, new func(t *testing.T) Tracker) {
		content := make([]byte, 32*image.PageSize)
		fill(content, 100)
		path := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		file, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		memory := mmap(t, 32, readWrite, unix.MAP_PRIVATE, int(file.Fd()))
		m := mapping(memory)
		m.Backing = image.BackingFile
		var sum byte
		for page := range 16 { // read without copying
			sum += memory[page*image.PageSize]
		}
		memory[2*image.PageSize] = 1
		memory[20*image.PageSize] = sum
		r := newReplica(t, new(t))
		r.backing = func(addr uint64) []byte { return content[addr-m.Start:][:image.PageSize] }
		if got := pagesOf(r.collect(m)[0].Content, m.Start); !slices.Equal(got, []int{2, 20}) {
			t.Errorf("private copies of pages %v instead of 2 and 20", got)
		}
		// A private copy is given up again, and another made.
		if err := unix.Madvise(memory[2*image.PageSize:3*image.PageSize], unix.MADV_DONTNEED); err != nil {
			t.Fatal(err)
		}
		memory[5*image.PageSize] = memory[2*image.PageSize]
		r.collect(m)
		if err := unix.Madvise(memory[20*image.PageSize:21*image.PageSize], unix.MADV_DONTNEED); err != nil {
			t.Fatal(err)
		}
		r.finish(m)
	})
}

// Stores through a shared mapping are found even if the page is unmapped again.
func TestSharedMapping(t *testing.T) {
	forEachTracker(t, func(t *testing.T, new func(t *testing.T) Tracker) {
		tracker := new(t)
		memory := mmap(t, 64, readWrite, unix.MAP_SHARED|unix.MAP_ANONYMOUS, -1)
		m := mapping(memory)
		m.Shared, m.Backing, m.Flags = true, image.BackingObject, image.FlagMayWrite
		fill(memory[:10*image.PageSize], 1)
		r := newReplica(t, tracker)
		r.collect(m)
		memory[3*image.PageSize] = 9
		memory[40*image.PageSize] = 9
		if err := unix.Madvise(memory[40*image.PageSize:41*image.PageSize], unix.MADV_DONTNEED); err != nil {
			t.Fatal(err)
		}
		got := pagesOf(r.collect(m)[0].Content, m.Start)
		if want := []int{3, 40}; tracker.SeesSharedWrites() && !slices.Equal(got, want) {
			t.Errorf("pages %v instead of %v", got, want)
		}
		if !slices.Contains(got, 3) {
			t.Errorf("page 3 is not among %v", got)
		}
	})
}

// Nothing can be stored through a mapping of a sealed object, and the kernel
// refuses to track it.
func TestSealedMapping(t *testing.T) {
	forEachTracker(t, func(t *testing.T, new func(t *testing.T) Tracker) {
		fd, err := unix.MemfdCreate("sealed", unix.MFD_ALLOW_SEALING|unix.MFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		if _, err := unix.Write(fd, make([]byte, 2*image.PageSize)); err != nil {
			t.Fatal(err)
		}
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_WRITE); err != nil {
			t.Fatal(err)
		}
		m := mapping(mmap(t, 2, unix.PROT_READ, unix.MAP_SHARED, fd))
		m.Shared, m.Backing = true, image.BackingObject
		tracker := new(t)
		for range 2 {
			if _, err := tracker.Collect(t.Context(), []image.Mapping{m}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := tracker.Final(t.Context(), []image.Mapping{m}); err != nil {
			t.Fatal(err)
		}
	})
}

func TestGuardPages(t *testing.T) {
	const guardInstall, guardRemove = 102, 103 // MADV_GUARD_*, include/uapi/asm-generic/mman-common.h
	forEachTracker(t, func(t *testing.T, new func(t *testing.T) Tracker) {
		memory := anonymous(t, 32)
		fill(memory, 1)
		err := unix.Madvise(memory[4*image.PageSize:6*image.PageSize], guardInstall)
		if err == unix.EINVAL {
			t.Skip("this kernel has no guard pages")
		}
		if err != nil {
			t.Fatal(err)
		}
		m := mapping(memory)
		r := newReplica(t, new(t))
		if got := pagesOf(r.collect(m)[0].Guards, m.Start); !slices.Equal(got, []int{4, 5}) {
			t.Errorf("guard pages %v instead of 4 and 5", got)
		}
		if err := unix.Madvise(memory[5*image.PageSize:6*image.PageSize], guardRemove); err != nil {
			t.Fatal(err)
		}
		if err := unix.Madvise(memory[9*image.PageSize:10*image.PageSize], guardInstall); err != nil {
			t.Fatal(err)
		}
		r.finish(m)
		var got []int
		for addr := range r.guards {
			got = append(got, int((addr-m.Start)/image.PageSize))
		}
		if slices.Sort(got); !slices.Equal(got, []int{4, 9}) {
			t.Errorf("guard pages %v at the end instead of 4 and 9", got)
		}
	})
}

// Untouched reservations cost nothing and gain no page tables.
func TestReservation(t *testing.T) {
	forEachTracker(t, func(t *testing.T, new func(t *testing.T) Tracker) {
		memory := mmap(t, 1<<30/image.PageSize, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE, -1)
		m := mapping(memory)
		before := pageTableBytes(t)
		r := newReplica(t, new(t))
		if c := r.collect(m)[0]; len(c.Content) != 0 {
			t.Errorf("pages in a reservation: %+v", c)
		}
		if c := r.collect(m)[0]; len(c.Content) != 0 {
			t.Errorf("pages in a reservation: %+v", c)
		}
		if grown := pageTableBytes(t) - before; grown > 256<<10 {
			t.Errorf("page tables have grown by %d bytes", grown)
		}
	})
}

// Pages that were never touched, between others that were, are not looked at
// one by one in the last look, and are found once something is in them.
func TestHoles(t *testing.T) {
	if err := tryAsync(); err != nil {
		t.Skip("soft-dirty compares what is there:", err)
	}
	const pages = 4096
	memory := anonymous(t, pages)
	if err := unix.Madvise(memory, unix.MADV_NOHUGEPAGE); err != nil {
		t.Fatal(err)
	}
	m := mapping(memory)
	touch := func(page int) { memory[page*image.PageSize] = 1 }
	for page := 0; page < pages; page += 3 {
		touch(page)
	}
	r := newReplica(t, newTracker(t, KindAsync))
	before := pageTableBytes(t)
	r.collect(m)
	touch(100)
	if c := r.collect(m)[0]; !slices.Equal(pagesOf(c.Content, m.Start), []int{100}) {
		t.Errorf("one page was touched, and %+v", c)
	}
	touch(200)
	if err := unix.Madvise(memory[300*image.PageSize:301*image.PageSize], unix.MADV_DONTNEED); err != nil {
		t.Fatal(err)
	}
	c := r.finish(m)[0]
	if !slices.Equal(pagesOf(c.Content, m.Start), []int{200}) || !slices.Equal(pagesOf(c.Gone, m.Start), []int{300}) {
		t.Errorf("page 200 was touched and 300 given up, and %+v", c)
	}
	if grown := pageTableBytes(t) - before; grown > 64<<10 {
		t.Errorf("page tables have grown by %d bytes", grown)
	}
}

func pageTableBytes(t *testing.T) int {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := bytes.Cut(status, []byte("VmPTE:"))
	var kilobytes int
	if _, err := fmt.Sscan(string(after), &kilobytes); err != nil {
		t.Fatal(err)
	}
	return kilobytes << 10
}

// A page is written that may be written without a fault, as its mapping was new for a
// while, and then became part of one that was not.
func TestMergedByProtection(t *testing.T) {
	forEachTracker(t, func(t *testing.T, new func(t *testing.T) Tracker) {
		// Nothing else is to be joined with it.
		all := mmap(t, 64, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, -1)
		part := func(first, end int) []byte { return all[first*image.PageSize : end*image.PageSize] }
		protect := func(first, end, protection int) {
			t.Helper()
			if err := unix.Mprotect(part(first, end), protection); err != nil {
				t.Fatal(err)
			}
		}
		remap(t, part(10, 20))
		fill(part(10, 20), 1)
		r := newReplica(t, new(t))
		m := mapping(part(10, 20))
		r.collect(m)
		protect(15, 20, unix.PROT_READ)
		remap(t, part(20, 25)) // new, and one with what comes before it
		protect(20, 25, unix.PROT_READ)
		protect(10, 15, unix.PROT_NONE)
		protect(15, 20, readWrite)
		all[17*image.PageSize] = 99
		protect(10, 15, readWrite)
		if !losesWrites(t, r.tracker) {
			r.finish(m)
			return
		}
		// That it is lost is known: memory is compared then.
		changes, err := r.tracker.Final(t.Context(), []image.Mapping{m})
		if err != nil || len(changes[0].Content) > 0 {
			t.Errorf("a tracker that loses writes has found one: %+v, %v", changes, err)
		}
	})
}

// losesWrites reports whether a tracker is known not to find all that is written.
func losesWrites(t *testing.T, tracker Tracker) bool {
	t.Helper()
	if _, ok := tracker.(*SoftDirty); !ok {
		return false
	}
	loses, err := LosesWrites()
	if err != nil {
		t.Fatal(err)
	}
	return loses
}

// Random operations in a random order: at the end the replica is equal.
func TestRandomOperations(t *testing.T) {
	forEachTracker(t, func(t *testing.T, new func(t *testing.T) Tracker) {
		for seed := range uint64(40) {
			t.Run(fmt.Sprint(seed), func(t *testing.T) {
				random := rand.New(rand.NewPCG(seed, 1))
				const pages = 200
				memory := anonymous(t, pages)
				m := mapping(memory)
				r := newReplica(t, new(t))
				part := func() []byte {
					from := random.IntN(pages)
					return memory[from*image.PageSize : (from+1+random.IntN(min(20, pages-from)))*image.PageSize]
				}
				protections := make([]int, pages) // what is not allowed
				each := func(part []byte, f func(page []byte, forbidden *int)) {
					first := (addressOf(part) - m.Start) / image.PageSize
					for i := range len(part) / image.PageSize {
						f(part[i*image.PageSize:][:image.PageSize], &protections[first+uint64(i)])
					}
				}
				for range 60 {
					switch random.IntN(10) {
					case 0:
						r.collect(m)
					case 1:
						if err := unix.Madvise(part(), unix.MADV_DONTNEED); err != nil {
							t.Fatal(err)
						}
					case 2:
						// The split mapping is looked at as one all the same.
						p, forbidden := part(), []int{0, unix.PROT_WRITE, readWrite}[random.IntN(3)]
						if losesWrites(t, r.tracker) {
							forbidden = 0
						}
						if err := unix.Mprotect(p, readWrite&^forbidden); err != nil {
							t.Fatal(err)
						}
						each(p, func(_ []byte, f *int) { *f = forbidden })
					case 3:
						p := part()
						remap(t, p)
						each(p, func(_ []byte, f *int) { *f = 0 })
					case 4:
						// Only read: maps the zero page.
						each(part(), func(page []byte, f *int) {
							if *f&unix.PROT_READ == 0 {
								_ = bytes.Count(page, []byte{1})
							}
						})
					default:
						seed := byte(random.IntN(256))
						each(part(), func(page []byte, f *int) {
							if *f == 0 {
								page[0] = seed
								seed++
							}
						})
					}
				}
				r.finish(m)
			})
		}
	})
}

func TestRanges(t *testing.T) {
	r := func(pairs ...uint64) []Range {
		var out []Range
		for i := 0; i < len(pairs); i += 2 {
			out = append(out, Range{Start: pairs[i], End: pairs[i+1]})
		}
		return out
	}
	for _, tt := range []struct{ a, b, want []Range }{
		{r(0, 10), r(), r(0, 10)},
		{r(0, 10), r(0, 10), nil},
		{r(0, 10), r(2, 4, 6, 8), r(0, 2, 4, 6, 8, 10)},
		{r(0, 4, 6, 10), r(3, 7), r(0, 3, 7, 10)},
		{r(0, 4, 6, 10), r(0, 100), nil},
		{r(5, 6), r(0, 1, 2, 3, 7, 8), r(5, 6)},
	} {
		if got := subtract(tt.a, tt.b); !slices.Equal(got, tt.want) {
			t.Errorf("%v without %v: %v instead of %v", tt.a, tt.b, got, tt.want)
		}
	}
	if got := join(r(4, 6, 0, 2, 2, 3, 5, 9)); !slices.Equal(got, r(0, 3, 4, 9)) {
		t.Errorf("joined: %v", got)
	}
}
