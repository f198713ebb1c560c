package pageserver

import (
	"sync"
	"time"
)

// The choice of the codec, by measurement:
//
//  1. A worker asks pick for the codec of its block, and now and then for a second
//     one to try on the same content.
//  2. It tells observeBlock how long reading and compressing took and what came out.
//  3. The writer tells observeLink how long the link kept it waiting.
//  4. rates.best, a pure function, weighs it all for the next pick.

// A codec that costs more must gain a tenth: the cores that it takes are the
// migrated process's too.
const worthwhile = 1.1

// samplingShare bounds the part of the workers' time that goes into trying
// codecs that are not in use.
const samplingShare = 1.0 / 32

// fastest is more bytes a second than any link or memory moves. It stands in
// where a measured time is zero.
const fastest = 1e12

// worthPacking reports whether n bytes of content that compress to packed are
// to be sent compressed. For less than that the other side's time is too dear.
func worthPacking(packed, n int) bool { return packed < n-n/32 }

// rates is what the choice depends on.
type rates struct {
	workers int
	link    float64         // bytes a second; 0 if unknown
	prepare float64         // seconds that a worker takes to read, classify and sum up a byte
	cost    [codecs]float64 // seconds more that compressing it takes
	ratio   [codecs]float64 // bytes of content for one on the wire; 0 if unknown
}

// throughput is the content that goes through in a second: the workers and the
// link overlap, so the slower one counts.
func (r *rates) throughput(c Codec) float64 {
	cores := float64(r.workers) / (r.prepare + r.cost[c])
	return min(cores, r.link*r.ratio[c], fastest)
}

// best is the codec that moves the most content, the cheaper of two about equal ones.
func (r *rates) best() Codec {
	if r.link == 0 {
		return S2 // seldom far from the best
	}
	best := None
	for _, c := range [...]Codec{S2, Zstd} {
		if r.ratio[c] > 0 && r.throughput(c) > worthwhile*r.throughput(best) {
			best = c
		}
	}
	return best
}

// chooser picks codecs. Workers and the writer use it at the same time.
type chooser struct {
	fixed Codec // unless Auto

	mu       sync.Mutex
	rates    rates           // but for link
	links    [2]linkEstimate // without and with the bandwidth limit
	working  time.Duration   // what workers have spent on blocks
	sampling time.Duration   // of that, on codecs not in use
	lastTry  Codec
}

func newChooser(fixed Codec, workers int) *chooser {
	c := &chooser{fixed: fixed}
	c.rates.workers = workers
	c.rates.ratio[None] = 1
	return c
}

func (c *chooser) link(limited bool) *linkEstimate {
	if limited {
		return &c.links[1]
	}
	return &c.links[0]
}

// pick returns the codec for the next block and one to try besides, which is
// Auto if there is none to try. What is urgent is not the place for it.
func (c *chooser) pick(limited, urgent bool) (use, try Codec) {
	if c.fixed != Auto {
		return c.fixed, Auto
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rates.link = c.link(limited).rate
	use = c.rates.best()
	if urgent || float64(c.sampling) > samplingShare*float64(c.working) {
		return use, Auto
	}
	try = S2
	if use == S2 || use == None && c.lastTry == S2 {
		try = Zstd
	}
	c.lastTry = try
	return use, try
}

// packing is how one codec did on a block.
type packing struct {
	codec  Codec
	took   time.Duration
	packed int // bytes
}

// observeBlock notes how long it took to read content bytes and how the codec
// in use and the one tried did on them; their codec may be Auto for none.
func (c *chooser) observeBlock(content int, prepare time.Duration, used, tried packing) {
	if c.fixed != Auto || content == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.working += prepare + used.took + tried.took
	c.sampling += tried.took
	average(&c.rates.prepare, prepare.Seconds()/float64(content))
	for _, p := range [...]packing{used, tried} {
		if p.codec == S2 || p.codec == Zstd {
			ratio := 1.0
			if worthPacking(p.packed, content) {
				ratio = float64(content) / float64(p.packed)
			}
			average(&c.rates.cost[p.codec], p.took.Seconds()/float64(content))
			average(&c.rates.ratio[p.codec], ratio)
		}
	}
}

// observeLink notes that of the last wall time the writer has waited busy for
// the link to take sent bytes.
func (c *chooser) observeLink(limited bool, sent uint64, busy, wall time.Duration) {
	if c.fixed != Auto {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.link(limited).observe(sent, busy, wall)
}

// average moves an average towards a new value; the last eight count most.
func average(avg *float64, v float64) {
	if *avg == 0 {
		*avg = v
		return
	}
	*avg += (v - *avg) / 8
}

// A measuring window is long enough to tell a link from the buffers before it.
const (
	windowTime  = 50 * time.Millisecond
	windowBytes = 8 << 20
)

// linkEstimate is what a link takes in bytes a second. Only a link that is
// kept full shows it: the bytes of a window by its wall time are what the link
// takes at least, the bytes by the time that the writer was blocked are what it
// takes at most (a write into an empty socket buffer is a mere copy). The
// estimate moves into these bounds. Within them it creeps upwards, or a link
// that got faster while the workers were the slow part would never be found out;
// if it has not, the next full window pulls the estimate down again.
type linkEstimate struct {
	rate float64 // 0 if unknown

	sent       uint64 // in this window
	busy, wall time.Duration
}

func (e *linkEstimate) observe(sent uint64, busy, wall time.Duration) {
	e.sent += sent
	e.busy += busy
	e.wall += wall
	if e.sent == 0 || e.wall < windowTime && e.sent < windowBytes {
		return
	}
	const creep = 1.02
	least := min(float64(e.sent)/e.wall.Seconds(), fastest)
	most := min(float64(e.sent)/e.busy.Seconds(), fastest)
	if e.rate == 0 {
		e.rate = most
	} else {
		e.rate *= creep
		e.rate += (min(max(e.rate, least), most) - e.rate) / 2
	}
	e.sent, e.busy, e.wall = 0, 0, 0
}
