package pageserver

import (
	"testing"
	"time"
)

// perSecond turns content bytes a second into what rates hold.
func perSecond(rate float64) float64 { return 1 / rate }

// typical is what was measured on one machine: reading at 4 GB/s, s2 at 1 GB/s
// and zstd at 300 MB/s a worker, on data that looks like a heap.
func typical(workers int, link float64) rates {
	r := rates{workers: workers, link: link, prepare: perSecond(4e9)}
	r.ratio[None] = 1
	r.cost[S2], r.ratio[S2] = perSecond(1e9), 2.1
	r.cost[Zstd], r.ratio[Zstd] = perSecond(300e6), 2.7
	return r
}

func TestBest(t *testing.T) {
	const (
		mega = 1e6
		giga = 1e9
	)
	incompressible := func(workers int, link float64) rates {
		r := typical(workers, link)
		r.ratio[S2], r.ratio[Zstd] = 1, 1
		return r
	}
	unsampled := typical(2, 10*mega)
	unsampled.ratio[Zstd] = 0
	alike := typical(8, 100*mega)
	alike.ratio[Zstd] = alike.ratio[S2] * 1.05
	instant := rates{workers: 2, link: 1e12}
	instant.ratio = [codecs]float64{None: 1, S2: 2, Zstd: 3}
	instantSlowLink := instant
	instantSlowLink.link = 10 * mega

	for _, test := range []struct {
		name string
		r    rates
		want Codec
	}{
		{"unknown link", typical(2, 0), S2},
		{"100 Mbit", typical(2, 12.5*mega), Zstd},
		{"1 Gbit", typical(2, 125*mega), Zstd},
		{"10 Gbit, two workers", typical(2, 1.25*giga), S2},
		{"10 Gbit, one worker: s2 is slower than the link", typical(1, 1.25*giga), None},
		{"10 Gbit, sixteen workers", typical(16, 1.25*giga), Zstd},
		{"100 Gbit, two workers", typical(2, 12.5*giga), None},
		{"nothing to gain", incompressible(16, 10*mega), None},
		{"not yet tried", unsampled, S2},
		{"about equal: the cheaper one", alike, S2},
		{"no measurable cost, fast link", instant, None},
		{"no measurable cost, slow link", instantSlowLink, Zstd},
	} {
		if got := test.r.best(); got != test.want {
			t.Errorf("%s: %v, want %v (none %.3g, s2 %.3g, zstd %.3g)", test.name, got, test.want,
				test.r.throughput(None), test.r.throughput(S2), test.r.throughput(Zstd))
		}
	}
}

func TestWorthPacking(t *testing.T) {
	for _, test := range []struct {
		packed int
		want   bool
	}{{0, true}, {3967, true}, {3968, false}, {4096, false}, {5000, false}} {
		if got := worthPacking(test.packed, 4096); got != test.want {
			t.Errorf("%d of 4096: %t", test.packed, got)
		}
	}
}

// feed simulates a link behind a socket buffer that takes rate bytes a second while
// the workers deliver at most supply bytes a second, for a number of windows.
func feed(e *linkEstimate, rate, supply float64, windows int) {
	const memoryCopy = 4e9 // what a write into an empty buffer takes
	for range windows {
		sent := min(rate, supply) * windowTime.Seconds()
		busy := sent / memoryCopy
		if supply > rate {
			busy = windowTime.Seconds()
		}
		e.observe(uint64(sent), time.Duration(busy*float64(time.Second)), windowTime)
	}
}

func TestLinkEstimate(t *testing.T) {
	within := func(t *testing.T, e *linkEstimate, least, most float64) {
		t.Helper()
		if e.rate < least || e.rate > most {
			t.Errorf("link estimated at %.3g bytes a second, want %.3g to %.3g", e.rate, least, most)
		}
	}
	t.Run("unknown before the first window", func(t *testing.T) {
		var e linkEstimate
		e.observe(1000, time.Millisecond, time.Millisecond)
		within(t, &e, 0, 0)
	})
	t.Run("full link", func(t *testing.T) {
		var e linkEstimate
		feed(&e, 100e6, 1e9, 10)
		within(t, &e, 95e6, 105e6)
	})
	t.Run("never full is fast", func(t *testing.T) {
		var e linkEstimate
		feed(&e, 1e9, 100e6, 10)
		within(t, &e, 1e9, 1e12)
	})
	t.Run("not full any more: remembers, creeps", func(t *testing.T) {
		var e linkEstimate
		feed(&e, 100e6, 1e9, 10)
		feed(&e, 100e6, 80e6, 10) // a slower codec: the buffer is empty now
		within(t, &e, 95e6, 130e6)
		feed(&e, 1e9, 80e6, 100) // creeps until a faster codec is worth trying
		within(t, &e, 200e6, 1e9)
		feed(&e, 100e6, 1e9, 8) // and back when that fills the link again
		within(t, &e, 95e6, 110e6)
	})
	t.Run("got faster", func(t *testing.T) {
		var e linkEstimate
		feed(&e, 100e6, 1e9, 10)
		feed(&e, 800e6, 1e9, 8)
		within(t, &e, 750e6, 850e6)
	})
	t.Run("many bytes end a window as well", func(t *testing.T) {
		var e linkEstimate
		e.observe(windowBytes, 0, 0)
		within(t, &e, 1e12, 1e12)
		e.observe(windowBytes, 0, 0)
		within(t, &e, 1e12, 1.02e12)
	})
}

func TestPickSamplesWithinItsShare(t *testing.T) {
	c := newChooser(Auto, 4)
	tries := make(map[Codec]int)
	const blocks = 2000
	for range blocks {
		use, try := c.pick(false, false)
		if use == try {
			t.Fatalf("tries %v, which is in use", try)
		}
		tries[try]++
		cost := map[Codec]time.Duration{S2: 250 * time.Microsecond, Zstd: 900 * time.Microsecond}
		size := map[Codec]int{S2: blockBytes / 2, Zstd: blockBytes / 3}
		c.observeBlock(blockBytes, 60*time.Microsecond,
			packing{use, cost[use], size[use]}, packing{try, cost[try], size[try]})
		c.observeLink(false, blockBytes, time.Microsecond, 60*time.Microsecond) // a fast link
	}
	if use, _ := c.pick(false, false); use != None {
		t.Errorf("picks %v on a fast link", use)
	}
	if tries[S2] < 3 || tries[Zstd] < 3 {
		t.Errorf("tried %v: not both now and again", tries)
	}
	if share := float64(c.sampling) / float64(c.working); share > 2*samplingShare {
		t.Errorf("%.1f %% of the time went into trying", 100*share)
	}
}

func TestPickTriesNothingThatIsUrgent(t *testing.T) {
	c := newChooser(Auto, 4)
	if _, try := c.pick(false, false); try == Auto {
		t.Error("a new chooser has nothing to try")
	}
	if _, try := c.pick(false, true); try != Auto {
		t.Errorf("tries %v while the process stands still", try)
	}
}

func TestPickKeepsLimitedAndUnlimitedApart(t *testing.T) {
	c := newChooser(Auto, 4)
	block := func(codec Codec, took time.Duration, packed int) {
		c.observeBlock(blockBytes, 60*time.Microsecond, packing{codec, took, packed}, packing{})
	}
	block(S2, 250*time.Microsecond, blockBytes/2)
	block(Zstd, 900*time.Microsecond, blockBytes/3)
	c.observeLink(true, 1e6, time.Second, time.Second)
	c.observeLink(false, 4e9, time.Second, time.Second)
	if use, _ := c.pick(true, false); use != Zstd {
		t.Errorf("picks %v at a megabyte a second", use)
	}
	if use, _ := c.pick(false, false); use != None {
		t.Errorf("picks %v at four gigabytes a second", use)
	}
}

func TestPickHonoursAFixedCodec(t *testing.T) {
	for _, fixed := range []Codec{None, S2, Zstd} {
		if use, try := newChooser(fixed, 1).pick(false, false); use != fixed || try != Auto {
			t.Errorf("%v: uses %v, tries %v", fixed, use, try)
		}
	}
}
