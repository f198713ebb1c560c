package source

import "time"

// A verdict says how to go on after a round.
type verdict int

const (
	verdictRound  verdict = iota // one more round
	verdictFreeze                // the rest fits the downtime that is allowed
	verdictFutile                // it does not, and more rounds will not change that
)

// Why rounds were futile.
const (
	reasonNotPaying = "the process writes its memory as fast as it can be sent"
	reasonRounds    = "the limit on rounds was reached"
)

const (
	// Rounds pay as long as each leastGain of them leave at least a tenth less
	// to do than the best before them.
	leastGain    = 3
	gainPercent  = 90
	lengthsApart = 4
	// Also when the rest fits, a round that promises to leave less than half of
	// it is worth its while, as long as sending the rest takes a noticeable part
	// of a freeze: one in so many. One round is kept in hand, for a process that
	// writes more just then.
	noticeable = 8
	// What was sent of a round tells the speed of the stream only if it is more
	// than goes into buffers on the way.
	tellingBytes = 4 << 20
)

// A pace is what rounds tell about how fast the process writes and how fast its
// pages travel. It knows no clock: everything is told to it.
type pace struct {
	allowed   time.Duration // downtime
	maxRounds int
	fixed     time.Duration // what a freeze costs beside its pages

	rounds   int
	speed    float64       // of the stream, bytes a second; 0: not known
	total    uint64        // bytes sent, all rounds
	took     time.Duration // for that
	looked   time.Time     // at the page tables
	interval time.Duration // between the last two looks; 0: there was one only
	dirty    uint64        // bytes found by the last look
	best     uint64        // least of dirty so far
	stale    int           // rounds since best was beaten
	halved   bool          // the last look found less than half of what the one before found
}

// looking tells that the page tables were looked at and how much had been written.
func (p *pace) looking(at time.Time, dirty uint64) {
	if p.rounds > 0 {
		p.interval = at.Sub(p.looked)
		switch {
		case p.rounds == 1 || dirty*100 < p.best*gainPercent:
			p.best, p.stale = dirty, 0
		default:
			p.stale++
		}
	}
	p.halved = p.rounds > 0 && dirty < p.dirty/2
	p.looked, p.dirty = at, dirty
	p.rounds++
}

// sent tells how long a round's pages took until they were in their place.
func (p *pace) sent(bytes uint64, took time.Duration) {
	p.total += bytes
	p.took += took
	switch {
	case bytes >= tellingBytes && took > 0:
		p.speed = float64(bytes) / took.Seconds()
	case p.speed == 0 || p.total < tellingBytes:
		if p.total > 0 && p.took > 0 {
			p.speed = float64(p.total) / p.took.Seconds()
		}
	}
}

// dirtyRate is how many bytes the process has written a second, pages that were
// written several times counted once.
func (p *pace) dirtyRate() float64 {
	if p.interval <= 0 {
		return 0
	}
	return float64(p.dirty) / p.interval.Seconds()
}

// estimate is the downtime if the process were frozen now. It is not known
// before the second look.
func (p *pace) estimate(now time.Time) (time.Duration, bool) {
	if p.interval <= 0 {
		return 0, false
	}
	left := p.dirtyRate() * now.Sub(p.looked).Seconds()
	if left == 0 {
		return p.fixed, true
	}
	if p.speed == 0 {
		return 0, false
	}
	return p.fixed + time.Duration(left/p.speed*float64(time.Second)), true
}

// next says how to go on now that everything found by the last look is in its
// place, and why if there is anything to say.
func (p *pace) next(now time.Time) (verdict, string) {
	left, known := p.estimate(now)
	switch {
	case known && left <= p.allowed && p.halved && p.stale == 0 && left-p.fixed > left/noticeable && p.rounds+1 < p.maxRounds:
		return verdictRound, ""
	// A process writes most of its pages at the beginning of an interval, and
	// then the same again: what a long interval tells about a short one is too
	// good to be true. The next interval will be as short as this one.
	case known && left <= p.allowed && p.interval <= lengthsApart*max(now.Sub(p.looked), p.fixed):
		return verdictFreeze, ""
	case p.rounds >= p.maxRounds:
		if known && left <= p.allowed {
			return verdictFreeze, ""
		}
		return verdictFutile, reasonRounds
	case p.stale >= leastGain && (!known || left > p.allowed):
		return verdictFutile, reasonNotPaying
	}
	return verdictRound, ""
}
