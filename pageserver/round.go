package pageserver

import (
	"context"
	"fmt"
	"iter"
	"sync"
	"time"
)

// A round on its way out:
//
//  1. split cuts drops and runs into blocks, taking each from the free ones;  (one goroutine)
//  2. prepare reads, classifies, sums up, compresses and frames;              (workers, at the same time)
//  3. transmit writes the blocks in the order in which they were cut, counts
//     them and hands them back as free.                                       (the caller of Round)
//
// The number of blocks is fixed, so no channel ever blocks its sender: split
// alone waits, for a free block. When something fails transmit goes on handing
// blocks back until split and the workers have come to their end.

// RoundSpec says what a round is to carry: each page at most once, in Runs or Drops.
type RoundSpec struct {
	N uint32 // greater than that of the round before
	// Runs and Drops may be nil. They are iterated by a goroutine of the
	// sender's while the pages are on their way.
	Runs  iter.Seq[Run]
	Drops iter.Seq[Run]
	// Urgent exempts the round from the bandwidth limit, and has nothing done in
	// it that is for later rounds, as the last one must be: the process stands
	// still for it.
	Urgent bool
}

// RoundStats is how a round went.
type RoundStats struct {
	N uint32
	Counters
	Missing  []Run            // what was not there any more when it was read
	Blocks   map[Codec]uint64 // how many went by which codec
	Digest   Digest           // over all pages of the round
	Duration time.Duration
}

// round is a round in progress.
type round struct {
	spec    RoundSpec
	limited bool
	stats   RoundStats
	totals  roundTotals
	failed  error // why not all pages could be had; the link is not to blame
}

// Round sends one round and returns when all of it has been written. If the
// source fails, the round stays unfinished: messages may follow, to say why,
// but no other round.
func (s *Sender) Round(ctx context.Context, spec RoundSpec) (RoundStats, error) {
	if s.rounds && (s.open || spec.N <= s.last) {
		return RoundStats{}, fmt.Errorf("sending round %d: round %d came before it (unfinished: %t)", spec.N, s.last, s.open)
	}
	start := time.Now()
	r := &round{
		spec:    spec,
		limited: s.link.limiter != nil && !spec.Urgent,
		stats:   RoundStats{N: spec.N, Blocks: make(map[Codec]uint64)},
	}
	err := s.writing(ctx, func() error {
		s.begin(spec.N)
		if err := s.writeMark(ctx, r, frameRoundBegin, nil); err != nil {
			return err
		}
		if err := s.sendPages(ctx, r); err != nil {
			return err
		}
		if r.failed == nil {
			s.open = false
			if err := s.writeMark(ctx, r, frameRoundEnd, r.totals.append(nil)); err != nil {
				return err
			}
		}
		return s.link.flush(ctx, r.limited)
	})
	if err == nil && r.failed != nil {
		err = fmt.Errorf("sending round %d: %w", spec.N, r.failed)
	}
	r.stats.Digest = r.totals.digest
	r.stats.Duration = time.Since(start)
	return r.stats, err
}

func (s *Sender) begin(n uint32) {
	s.rounds, s.open, s.last = true, true, n
	if s.free == nil {
		// For each worker one that it is at and one that waits for it or for the
		// link, and those that split and transmit have in their hands.
		blocks := 2*s.workers + 2
		s.free = make(chan *outBlock, blocks)
		for range blocks {
			s.free <- newOutBlock()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.progress.N = n
	s.progress.Round = Counters{}
}

// writeMark writes the beginning or the end of a round.
func (s *Sender) writeMark(ctx context.Context, r *round, typ frameType, payload []byte) error {
	b := appendHead(nil, header{typ: typ, number: r.spec.N, payload: uint32(len(payload))}, nil, payload)
	b = append(b, payload...)
	s.countRound(r, Counters{WireBytes: uint64(len(b))})
	return s.link.write(ctx, b, r.limited)
}

func (s *Sender) countRound(r *round, c Counters) {
	r.stats.add(c)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.progress.Round.add(c)
	s.progress.Total.add(c)
}

// sendPages carries the pages of r. It returns the link's failure; that of the
// source goes into r.failed.
func (s *Sender) sendPages(ctx context.Context, r *round) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var running sync.WaitGroup
	defer running.Wait()
	work := make(chan *outBlock, cap(s.free))
	queue := make(chan *outBlock, cap(s.free))
	running.Go(func() {
		defer close(work)
		defer close(queue)
		s.split(ctx, r, work, queue)
	})
	for range s.workers {
		running.Go(func() {
			for b := range work {
				b.prepare(ctx, s, r)
				b.done <- struct{}{}
			}
		})
	}
	return s.transmit(ctx, cancel, r, queue)
}

func (s *Sender) split(ctx context.Context, r *round, work, queue chan<- *outBlock) {
	cut := func(typ frameType, runs iter.Seq[Run], maxPages uint64) {
		if runs == nil {
			return
		}
		for space, ranges := range batches(runs, maxPages) {
			b := <-s.free
			if ctx.Err() != nil {
				s.free <- b
				return
			}
			b.typ, b.space, b.ranges = typ, space, append(b.ranges[:0], ranges...)
			queue <- b
			work <- b
		}
	}
	cut(frameDrop, r.spec.Drops, maxFrameRanges*maxRangePages)
	cut(frameBlock, r.spec.Runs, blockPages)
}

// transmit writes the blocks of queue. After a failure it cancels the others
// and only hands blocks back.
func (s *Sender) transmit(ctx context.Context, cancel context.CancelFunc, r *round, queue <-chan *outBlock) error {
	var failed error
	last, sent, busy := time.Now(), s.link.sent, s.link.busy
	for b := range queue {
		<-b.done
		if failed == nil && r.failed == nil {
			if r.failed = b.err; b.err == nil {
				failed = s.link.write(ctx, b.wire, r.limited)
				s.account(r, b)
			}
			if failed != nil || r.failed != nil {
				cancel()
			}
			now := time.Now()
			s.chooser.observeLink(r.limited, s.link.sent-sent, s.link.busy-busy, now.Sub(last))
			last, sent, busy = now, s.link.sent, s.link.busy
		}
		s.free <- b
	}
	return failed
}

func (s *Sender) account(r *round, b *outBlock) {
	r.totals.add(b.totals)
	if b.totals.pages > 0 {
		r.stats.Blocks[b.codec]++
	}
	for _, run := range b.missing {
		r.stats.Missing = appendRun(r.stats.Missing, run)
	}
	s.countRound(r, b.counters())
}
