package scheduler

import "time"

// Timing is how long the scheduler waits for what. Only durations are measured.
type Timing struct {
	Preflight time.Duration // for both sides' findings together
	Reach     time.Duration // for a host that does not answer in preflight
	Silence   time.Duration // without a word from a source that has not promised
	Ask       time.Duration // for a silent source's answer to whether it is alive
	Prepared  time.Duration // from the promise to the destination's PREPARED
	Order     time.Duration // for one answer to an order; it is repeated after
	RetryMin  time.Duration // between two tries, at first
	RetryMax  time.Duration // and later
}

// DefaultTiming is for hosts on one network.
func DefaultTiming() Timing {
	return Timing{
		Preflight: 2 * time.Minute,
		Reach:     10 * time.Second,
		Silence:   30 * time.Second,
		Ask:       5 * time.Second,
		Prepared:  60 * time.Second,
		Order:     30 * time.Second,
		RetryMin:  50 * time.Millisecond,
		RetryMax:  2 * time.Second,
	}
}

// pause is the time before the n-th repetition, counted from zero.
func (t Timing) pause(n int) time.Duration {
	d := t.RetryMin
	for range n {
		if d *= 2; d >= t.RetryMax {
			return t.RetryMax
		}
	}
	return d
}
