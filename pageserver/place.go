package pageserver

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// crew is the goroutines of one call of Next that place pages. There are none
// until there is a page.
type crew struct {
	receiver *Receiver
	fail     context.CancelCauseFunc
	work     chan *inBlock
	inFlight sync.WaitGroup // blocks given and not yet placed
	running  sync.WaitGroup // goroutines
}

// takeBlock returns a free block, waiting for one if need be: so the stream is
// not read faster than it is placed.
func (c *crew) takeBlock(ctx context.Context) *inBlock {
	v := c.receiver
	if v.free == nil {
		// For each worker one that it is at and one that waits for it, and the
		// one that is being read.
		blocks := 2*v.workers + 1
		v.free = make(chan *inBlock, blocks)
		for range blocks {
			v.free <- new(inBlock)
		}
	}
	if c.work == nil {
		c.work = make(chan *inBlock, cap(v.free))
		for range v.workers {
			c.running.Go(func() { c.place(ctx) })
		}
	}
	return <-v.free
}

func (c *crew) give(b *inBlock) {
	c.inFlight.Add(1)
	c.work <- b
}

// wait waits until all blocks given have been placed.
func (c *crew) wait() { c.inFlight.Wait() }

// dismiss waits for the goroutines to end.
func (c *crew) dismiss() {
	if c.work != nil {
		close(c.work)
		c.running.Wait()
	}
}

func (c *crew) place(ctx context.Context) {
	v := c.receiver
	for b := range c.work {
		if ctx.Err() == nil {
			if totals, err := b.place(v); err != nil {
				c.fail(err)
			} else {
				v.count(totals, headerBytes+len(b.table)+len(b.payload))
			}
		}
		v.free <- b
		c.inFlight.Done()
	}
}

// An inBlock is a frame with pages on its way through the receiver.
type inBlock struct {
	header  header
	table   []byte
	payload []byte

	ranges []Range
	sums   []byte
	raw    []byte // decompressed content
}

// place checks the block, decompresses it and gives it to v's sink.
func (b *inBlock) place(v *Receiver) (roundTotals, error) {
	if v.sink == nil {
		return roundTotals{}, errors.New("there is no sink for pages")
	}
	ranges, err := parseRanges(b.ranges[:0], b.table)
	if err != nil {
		return roundTotals{}, err
	}
	b.ranges = ranges
	space := SpaceID(b.header.number)
	var totals roundTotals
	switch b.header.typ {
	case frameBlock:
		return b.placeContent(v, space)
	case frameZero:
		if err := b.check(nil); err != nil {
			return roundTotals{}, err
		}
		totals = roundTotals{zero: countPages(ranges), digest: zeroDigest(space, ranges)}
		err = v.sink.Zero(space, ranges)
	case frameDrop:
		if err := b.check(nil); err != nil {
			return roundTotals{}, err
		}
		totals = roundTotals{dropped: countPages(ranges), digest: dropDigest(space, ranges)}
		err = v.sink.Drop(space, ranges)
	}
	if err != nil {
		return roundTotals{}, fmt.Errorf("placing (%v) %s: %w", b.header.typ, describe(space, ranges), err)
	}
	return totals, nil
}

func (b *inBlock) placeContent(v *Receiver, space SpaceID) (roundTotals, error) {
	pages := countPages(b.ranges)
	if pages > maxBlockPages {
		return roundTotals{}, fmt.Errorf("%w: block of %d pages", ErrCorrupt, pages)
	}
	content := b.payload
	if codec := Codec(b.header.code); codec != None {
		b.raw = sized(b.raw, int(pages)*PageSize)
		if err := v.decompressor.decompress(codec, b.raw, b.payload); err != nil {
			return roundTotals{}, fmt.Errorf("decompressing %s: %w", describe(space, b.ranges), err)
		}
		content = b.raw
	} else if len(content) != int(pages)*PageSize {
		return roundTotals{}, fmt.Errorf("%w: %d bytes for %d pages", ErrCorrupt, len(content), pages)
	}
	totals := roundTotals{pages: pages}
	b.sums, totals.digest = sumPages(b.sums[:0], space, b.ranges, content)
	if err := b.check(b.sums); err != nil {
		return roundTotals{}, err
	}
	if err := v.sink.Write(space, b.ranges, content); err != nil {
		return roundTotals{}, fmt.Errorf("placing %s: %w", describe(space, b.ranges), err)
	}
	return totals, nil
}

// check compares the checksum of the body, which covers tail besides the range table.
func (b *inBlock) check(tail []byte) error {
	if bodyChecksum(b.table, tail) != b.header.body {
		return fmt.Errorf("%w: checksum of a %v of %s", ErrCorrupt, b.header.typ, describe(SpaceID(b.header.number), b.ranges))
	}
	return nil
}
