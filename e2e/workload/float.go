package main

import (
	"flag"
	"fmt"
	"math"
	"runtime"
	"slices"
)

const (
	maxLanes = 29 * 8

	// growth is where the logistic map is chaotic: a bit that is wrong in one
	// lane has changed all bits of it some fifty rounds later, unless it was
	// the last one or so and rounded away.
	growth = 3.99

	mxcsrDefault    = 0x1f80
	mxcsrTowardZero = 0x7f80
	mxcsrFlags      = 0x3f // what has happened so far, not how to round
	cwDefault       = 0x037f
	cwDouble        = 0x027f // round to 53 bits
)

// machine is what a thread's floating-point state looks like in memory; its
// layout is known to the assembly.
type machine struct {
	mxcsr  uint32
	cw     uint16 // of the x87
	_      uint16
	stack  [4]float64 // of the x87
	one    float64
	growth float64
	masks  [7]uint64 // K1 to K7
	lanes  [maxLanes]float64
}

// float keeps the vector registers of several threads full of numbers that
// depend on all of their history. Each stretch is computed twice, in other
// registers each time, and must come to the same.
type float struct {
	threads int
	rounds  int
	unit    string

	journal *journal
	workers []*floatWorker
}

func newFloat(flags *flag.FlagSet, j *journal) program {
	f := &float{journal: j}
	flags.IntVar(&f.threads, "threads", 2, "how many threads compute")
	flags.IntVar(&f.rounds, "rounds", 1_000_000, "length of the stretch that a thread computes without leaving its registers")
	flags.StringVar(&f.unit, "unit", "", "avx or avx512; empty for the largest that the CPU has")
	return f
}

func (f *float) start() error {
	if f.threads < 1 || f.rounds < 1 {
		return fmt.Errorf("%d threads, %d rounds: none may be 0", f.threads, f.rounds)
	}
	unit, err := f.pickUnit()
	if err != nil {
		return err
	}
	for i := range f.threads {
		w := &floatWorker{journal: f.journal, unit: unit, rounds: f.rounds, questions: make(chan chan answer)}
		w.fill(i)
		f.workers = append(f.workers, w)
	}
	ready := make(chan struct{})
	for _, w := range f.workers {
		go w.run(ready)
	}
	for range f.workers {
		<-ready
	}
	return nil
}

func (f *float) pickUnit() (vectorUnit, error) {
	for _, u := range slices.Backward(vectorUnits) {
		if u.has && (f.unit == "" || f.unit == u.name) {
			return u, nil
		}
	}
	return vectorUnit{}, fmt.Errorf("this CPU has no vector unit %q", f.unit)
}

func (f *float) verify() findings {
	var questions []chan chan answer
	for _, w := range f.workers {
		questions = append(questions, w.questions)
	}
	return collect(questions)
}

// A floatWorker is one thread.
type floatWorker struct {
	journal    *journal
	unit       vectorUnit
	rounds     int
	state      machine // where the computation is
	stretches  int64
	references int64
	questions  chan chan answer
}

// fill gives each thread numbers of its own, and every other one another way
// to round.
func (w *floatWorker) fill(number int) {
	w.state = machine{mxcsr: mxcsrDefault, cw: cwDefault, one: 1, growth: growth}
	if number%2 == 1 {
		w.state.mxcsr, w.state.cw = mxcsrTowardZero, cwDouble
	}
	seed := mix(uint64(number) + 1)
	next := func() uint64 { seed += 0x9e3779b97f4a7c15; return mix(seed) }
	for i := range w.state.masks {
		w.state.masks[i] = next()
	}
	for i := range w.state.stack {
		w.state.stack[i] = unit(next())
	}
	for i := range w.lanes(&w.state) {
		w.state.lanes[i] = unit(next())
	}
}

// unit is a number between 0 and 1, and neither of them.
func unit(x uint64) float64 { return (float64(x>>11) + 0.5) / (1 << 53) }

func (w *floatWorker) lanes(m *machine) []float64 { return m.lanes[:w.unit.registers*w.unit.width] }

func (w *floatWorker) run(ready chan<- struct{}) {
	runtime.LockOSThread()
	watch := newWatch(w.journal)
	ready <- struct{}{}
	for {
		w.stretch()
		select {
		case q := <-w.questions:
			w.reference()
			q <- answer{thread: watch.report(), clock: watch.clock, counts: map[string]int64{
				"stretches": w.stretches, "references": w.references,
			}}
		default:
		}
		watch.step()
	}
}

// stretch computes on, twice: the second time with the lanes some registers
// further on.
func (w *floatWorker) stretch() {
	first, second := w.state, w.state
	shift := (1 + int(w.stretches)%(w.unit.registers-1)) * w.unit.width
	rotate(w.lanes(&second), shift)
	for _, m := range []*machine{&first, &second} {
		w.unit.spin(m, uint64(w.rounds))
		w.compareRest(m)
	}
	rotate(w.lanes(&second), len(w.lanes(&second))-shift)
	w.compare("computing it again in other registers", w.lanes(&first), w.lanes(&second))
	copy(w.lanes(&w.state), w.lanes(&first))
	w.stretches++
}

// reference compares the registers with what Go computes. It rounds to nearest
// only.
func (w *floatWorker) reference() {
	const rounds = 2000
	vector := w.state
	vector.mxcsr, vector.cw = mxcsrDefault, cwDefault
	scalar := slices.Clone(w.lanes(&vector))
	w.unit.spin(&vector, rounds)
	for i, x := range scalar {
		for range rounds {
			x *= float64(1 - x) // the conversion keeps a compiler from fusing
			x *= growth
		}
		scalar[i] = x
	}
	w.compare("computing it one by one", w.lanes(&vector), scalar)
	w.references++
}

// compareRest looks at what the loop holds and does not change.
func (w *floatWorker) compareRest(m *machine) {
	// Rounding sets the flag that says so.
	if got, want := m.mxcsr&^mxcsrFlags, w.state.mxcsr; got != want {
		w.journal.problemf("MXCSR is %#x instead of %#x", got, want)
	}
	if m.cw != w.state.cw {
		w.journal.problemf("the x87's control word is %#x instead of %#x", m.cw, w.state.cw)
	}
	if m.masks != w.state.masks {
		w.journal.problemf("mask registers hold %#x instead of %#x", m.masks, w.state.masks)
	}
	w.compare("loading the x87's stack", w.state.stack[:], m.stack[:])
}

func (w *floatWorker) compare(what string, a, b []float64) {
	for i := range a {
		if math.Float64bits(a[i]) != math.Float64bits(b[i]) {
			w.journal.problemf("%s, lane %d of register %d: %v and not %v", what, i%w.unit.width, i/w.unit.width, b[i], a[i])
			return
		}
	}
}

// rotate moves all numbers up by n places, and the last ones to the beginning.
func rotate(x []float64, n int) {
	slices.Reverse(x)
	slices.Reverse(x[:n])
	slices.Reverse(x[n:])
}
