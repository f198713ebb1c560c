package source

import (
	"testing"
	"time"
)

// A simulation of rounds: a process that writes to its memory at a rate, up to
// a working set, and a stream of some speed.
type simulation struct {
	resident, working uint64  // bytes
	rate              float64 // bytes a second
	speed             float64
	overhead          time.Duration // of a round
}

// run makes rounds until a verdict other than one more, and returns that, the
// number of rounds and what a freeze would then really have cost.
func (s simulation) run(p pace) (verdict, int, time.Duration) {
	now := time.Unix(1000, 0)
	written := func(d time.Duration) uint64 {
		return min(s.working, uint64(s.rate*d.Seconds()))
	}
	dirty := s.resident
	for n := 1; ; n++ {
		looked := now
		p.looking(looked, dirty)
		took := time.Duration(float64(dirty)/s.speed*float64(time.Second)) + s.overhead
		p.sent(dirty, took)
		now = now.Add(took)
		dirty = written(now.Sub(looked))
		if v, _ := p.next(now); v != verdictRound {
			return v, n, p.fixed + time.Duration(float64(dirty)/s.speed*float64(time.Second))
		}
	}
}

func TestPace(t *testing.T) {
	const ms, mib, gib = time.Millisecond, 1 << 20, 1 << 30
	for name, test := range map[string]struct {
		s      simulation
		want   verdict
		rounds int // at most
	}{
		"idle":                   {simulation{gib, 0, 0, gib, ms}, verdictFreeze, 3},
		"slow writer":            {simulation{gib, gib, 10 * mib, gib, ms}, verdictFreeze, 6},
		"half as fast as stream": {simulation{gib, gib, gib / 2, gib, ms}, verdictFreeze, 10},
		"small working set":      {simulation{gib, 8 * mib, 4 * gib, gib, ms}, verdictFreeze, 6},
		"too fast":               {simulation{gib, gib, 4 * gib, gib, ms}, verdictFutile, 6},
		"large working set":      {simulation{gib, 256 * mib, 4 * gib, gib, ms}, verdictFutile, 8},
		"tiny":                   {simulation{mib, mib / 4, mib, gib, ms}, verdictFreeze, 4},
	} {
		t.Run(name, func(t *testing.T) {
			v, rounds, cost := test.s.run(pace{allowed: 50 * ms, maxRounds: 30, fixed: 5 * ms})
			if v != test.want || rounds > test.rounds {
				t.Errorf("verdict %v after %d rounds instead of %v after at most %d", v, rounds, test.want, test.rounds)
			}
			if v == verdictFreeze && cost > 50*ms {
				t.Errorf("freezing would have cost %v", cost)
			}
		})
	}
}

func TestPaceLimits(t *testing.T) {
	p := pace{allowed: 50 * time.Millisecond, maxRounds: 2, fixed: 5 * time.Millisecond}
	if v, n, _ := (simulation{1 << 30, 1 << 30, 1 << 29, 1 << 30, 0}).run(p); v != verdictFutile || n != 2 {
		t.Errorf("verdict %v after %d rounds, 2 are allowed", v, n)
	}
	p.maxRounds = 1
	if v, n, _ := (simulation{1 << 30, 0, 0, 1 << 30, 0}).run(p); v != verdictFutile || n != 1 {
		t.Errorf("verdict %v after %d rounds, 1 is allowed", v, n)
	}
	// What a freeze costs in any case may be more than is allowed.
	p = pace{allowed: time.Millisecond, maxRounds: 30, fixed: 5 * time.Millisecond}
	if v, n, _ := (simulation{1 << 30, 0, 0, 1 << 30, time.Millisecond}).run(p); v != verdictFutile || n > 5 {
		t.Errorf("verdict %v after %d rounds", v, n)
	}
}

// That the rest fits is not enough while the next round leaves less than half of it.
func TestPaceHalves(t *testing.T) {
	const ms, gib = time.Millisecond, 1 << 30
	s := simulation{gib, gib, gib / 10, gib, ms}
	p := pace{allowed: 50 * ms, maxRounds: 30, fixed: 5 * ms}
	if v, n, cost := s.run(p); v != verdictFreeze || cost > p.fixed+ms || n > 6 {
		t.Errorf("verdict %v after %d rounds: frozen then, it would stand still for %v", v, n, cost)
	}
	// The limit on rounds holds all the same.
	for most := 3; most < 6; most++ {
		p.maxRounds = most
		if v, n, _ := s.run(p); v != verdictFreeze || n > most {
			t.Errorf("verdict %v after %d rounds, %d are allowed", v, n, most)
		}
	}
}
