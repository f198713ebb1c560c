package main

import (
	"flag"
	"fmt"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// quantum is the time between two bursts of writes. Pauses are seen as
// precisely as this.
const quantum = time.Millisecond

// memory writes to private anonymous memory from several threads. Each page's
// content follows from its name and its generation; the generations are kept
// elsewhere, so every page can be checked at any time by the thread that owns it.
type memory struct {
	size    byteSize
	threads int
	rate    int
	churn   bool

	journal *journal
	owners  []*owner
	churner *churner
}

func newMemory(flags *flag.FlagSet, j *journal) program {
	m := &memory{size: 256 << 20, journal: j}
	flags.Var(&m.size, "size", "how much memory, as 64MiB or 1GiB")
	flags.IntVar(&m.threads, "threads", 4, "how many threads write to it")
	flags.IntVar(&m.rate, "rate", 20000, "how many pages a second they write together")
	flags.BoolVar(&m.churn, "churn", false, "one more thread makes, moves, protects and drops mappings")
	return m
}

// start returns when every page has its first content and the threads run.
func (m *memory) start() error {
	pages := int(m.size / pageSize)
	if m.threads < 1 || m.rate < 1 || pages < m.threads {
		return fmt.Errorf("%d pages, %d threads, %d pages a second: none may be 0, and each thread needs a page", pages, m.threads, m.rate)
	}
	region, err := unix.Mmap(-1, 0, pages*pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return fmt.Errorf("mapping %d pages: %w", pages, err)
	}
	for i := range m.threads {
		first, end := pages*i/m.threads, pages*(i+1)/m.threads
		m.owners = append(m.owners, &owner{
			first:       pageID(first),
			pages:       region[first*pageSize : end*pageSize],
			generations: make([]uint32, end-first),
			random:      mix(uint64(i) + 1),
			perQuantum:  float64(m.rate) / float64(m.threads) * quantum.Seconds(),
			questions:   make(chan chan answer),
		})
	}
	ready := make(chan struct{})
	for _, o := range m.owners {
		go o.run(m.journal, ready)
	}
	if m.churn {
		m.churner = &churner{journal: m.journal, random: mix(uint64(m.threads) + 1), questions: make(chan chan answer)}
		go m.churner.run(ready)
	}
	for range m.owners {
		<-ready
	}
	if m.churn {
		<-ready
	}
	return nil
}

func (m *memory) verify() findings {
	var questions []chan chan answer
	for _, o := range m.owners {
		questions = append(questions, o.questions)
	}
	if m.churner != nil {
		questions = append(questions, m.churner.questions)
	}
	return collect(questions)
}

// An owner is one thread and the pages that it alone reads and writes.
type owner struct {
	first       pageID
	pages       []byte
	generations []uint32
	writes      int64 // the sum of all generations
	random      uint64
	perQuantum  float64 // writes a quantum, on average
	due         float64 // writes that are still to be made
	cursor      int     // next page to verify
	questions   chan chan answer
	scratch     [pageSize]byte
}

func (o *owner) run(j *journal, ready chan<- struct{}) {
	runtime.LockOSThread()
	for i := range o.generations {
		// Some pages stay untouched until their turn comes.
		if mix(uint64(o.first)+uint64(i))%32 != 0 {
			o.write(i)
		}
	}
	w := newWatch(j)
	ready <- struct{}{}
	for next := monotonic(); ; {
		// After a pause the writes that it cost are not made up for.
		next = max(next+int64(quantum), monotonic())
		sleepUntil(next)
		select {
		case q := <-o.questions:
			o.verifyAll(w)
			q <- answer{thread: w.report(), clock: w.clock, counts: map[string]int64{
				"writes": o.writes, "verified": int64(len(o.generations)),
			}}
		default:
			o.burst(w)
		}
		w.step()
	}
}

// burst makes the writes of a quantum and verifies one page for four of them.
func (o *owner) burst(w *watch) {
	o.due += o.perQuantum
	for ; o.due >= 1; o.due-- {
		o.write(o.pick())
		if o.writes%4 == 0 {
			o.cursor = (o.cursor + 1) % len(o.generations)
			o.verify(o.cursor, w.journal)
		}
		w.step()
	}
}

// pick chooses a page: mostly of a sixteenth that is written again and again.
func (o *owner) pick() int {
	o.random += 0x9e3779b97f4a7c15
	r := mix(o.random)
	n := len(o.generations)
	if r>>60 != 0 {
		n = max(1, n/16)
	}
	return int(r % uint64(n))
}

func (o *owner) page(i int) []byte { return o.pages[i*pageSize : (i+1)*pageSize] }

func (o *owner) write(i int) {
	o.generations[i]++
	o.writes++
	fill(o.page(i), o.first+pageID(i), o.generations[i])
}

func (o *owner) verify(i int, j *journal) {
	if err := check(o.page(i), o.scratch[:], o.first+pageID(i), o.generations[i]); err != nil {
		j.problemf("%v", err)
	}
}

// verifyAll checks every page, and the generations against their sum: both are
// memory that may have been lost.
func (o *owner) verifyAll(w *watch) {
	var sum int64
	for i, g := range o.generations {
		sum += int64(g)
		o.verify(i, w.journal)
		w.step()
	}
	if sum != o.writes {
		w.journal.problemf("thread %d has made %d writes, its pages have seen %d", w.tid, o.writes, sum)
	}
}
