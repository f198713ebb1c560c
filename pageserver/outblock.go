package pageserver

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"time"
)

const (
	// blockPages is what a sender puts into one block: enough that a system call
	// is cheap beside it, little enough that a block stays in a core's own cache
	// on its way and that the last round is spread over all workers.
	blockPages = 64
	blockBytes = blockPages * PageSize
	// headroom lies before the content, for a zero frame and the block's own head:
	// so a block leaves in one write without being copied again.
	headroom = PageSize
)

// An outBlock is a piece of a round on its way through the sender. It goes
// from the splitter to a worker and to the writer; whoever has it owns it.
type outBlock struct {
	// Set by the splitter.
	typ    frameType // frameBlock or frameDrop
	space  SpaceID
	ranges []Range
	done   chan struct{} // receives once the worker has finished

	// Set by the worker.
	err      error
	wire     []byte // the finished frames, in one of the buffers below
	codec    Codec
	totals   roundTotals
	missing  []Run
	gone     [blockPages]bool
	kept     []Range // with content
	zero     []Range
	sums     []byte
	plain    []byte // headroom and content
	packed   []byte // headroom and compressed content
	rejected []byte // what a codec made of the content only to be measured
}

func newOutBlock() *outBlock { return &outBlock{done: make(chan struct{}, 1)} }

// sized returns buf, or a new one where it is too short. Buffers are made on
// first use: a stream of messages needs none, a codec not in use neither.
func sized(buf []byte, n int) []byte {
	if cap(buf) < n {
		return make([]byte, n)
	}
	return buf[:n]
}

// prepare turns the block's pages into frames.
func (b *outBlock) prepare(ctx context.Context, s *Sender, r *round) {
	b.totals = roundTotals{}
	b.missing = b.missing[:0]
	b.wire = nil
	if b.err = context.Cause(ctx); b.err != nil {
		return
	}
	for _, r := range b.ranges {
		if !r.valid() {
			b.err = fmt.Errorf("sending %v: there is no such range of pages", Run{b.space, r})
			return
		}
	}
	if b.typ == frameDrop {
		b.totals.dropped = countPages(b.ranges)
		b.totals.digest = dropDigest(b.space, b.ranges)
		b.plain = sized(b.plain, headroom)
		b.wire = appendHead(b.plain[:0], header{typ: frameDrop, number: uint32(b.space)}, b.ranges, nil)
		return
	}
	b.err = b.preparePages(s, r)
}

func (b *outBlock) preparePages(s *Sender, r *round) error {
	start := time.Now()
	n := int(countPages(b.ranges))
	b.plain = sized(b.plain, headroom+blockBytes)
	if err := readPages(s.src, b.space, b.ranges, b.plain[headroom:headroom+n*PageSize], b.gone[:n]); err != nil {
		return err
	}
	content := b.classify()
	read := time.Since(start)

	b.codec = None
	payload := content
	if len(content) > 0 {
		use, try := s.chooser.pick(r.limited, r.spec.Urgent)
		var used, tried packing
		var err error
		if used, payload, err = b.pack(s.compressor, use, content); err != nil {
			return err
		}
		if tried, err = b.attempt(s.compressor, try, content); err != nil {
			return err
		}
		s.chooser.observeBlock(len(content), read, used, tried)
	}
	b.frame(payload)
	return nil
}

// classify sorts the pages that were read into kept, zero and missing ones,
// moves the kept ones together, sums everything up, and returns the content.
// It touches each page once, while it is in the cache.
func (b *outBlock) classify() []byte {
	pages := b.plain[headroom:]
	b.kept, b.zero, b.sums = b.kept[:0], b.zero[:0], b.sums[:0]
	at, kept := 0, 0
	for _, r := range b.ranges {
		for page := range r.each {
			content := pages[at*PageSize : (at+1)*PageSize]
			switch {
			case b.gone[at]:
				b.missing = appendRun(b.missing, Run{b.space, Range{page, 1}})
			case isZero(content):
				b.zero = appendPage(b.zero, page)
				b.totals.digest += pageDigest(b.space, page, zeroPageCRC)
			default:
				if kept < at {
					copy(pages[kept*PageSize:], content)
				}
				kept++
				b.kept = appendPage(b.kept, page)
				crc := crc32.Checksum(content, castagnoli)
				b.sums = binary.LittleEndian.AppendUint32(b.sums, crc)
				b.totals.digest += pageDigest(b.space, page, crc)
			}
			at++
		}
	}
	b.totals.pages = uint64(kept)
	b.totals.zero = countPages(b.zero)
	return pages[:kept*PageSize]
}

// pack compresses content where that is worth it and returns the payload.
func (b *outBlock) pack(c compressor, codec Codec, content []byte) (packing, []byte, error) {
	if codec == None {
		return packing{codec: None}, content, nil
	}
	start := time.Now()
	b.packed = sized(b.packed, headroom+codec.bound(blockBytes))
	payload, err := c.compress(codec, b.packed[headroom:], content)
	if err != nil {
		return packing{}, nil, err
	}
	p := packing{codec, time.Since(start), len(payload)}
	if !worthPacking(len(payload), len(content)) {
		return p, content, nil
	}
	b.codec = codec
	return p, payload, nil
}

// attempt compresses content only to see how a codec does on it.
func (b *outBlock) attempt(c compressor, codec Codec, content []byte) (packing, error) {
	if codec == Auto {
		return packing{}, nil
	}
	start := time.Now()
	b.rejected = sized(b.rejected, codec.bound(blockBytes))
	out, err := c.compress(codec, b.rejected, content)
	return packing{codec, time.Since(start), len(out)}, err
}

// frame writes the heads of the frames into the headroom before the payload.
func (b *outBlock) frame(payload []byte) {
	buf := b.plain
	if b.codec != None {
		buf = b.packed
	}
	start := headroom
	if len(b.zero) > 0 {
		start -= headBytes(b.zero)
	}
	if len(b.kept) > 0 {
		start -= headBytes(b.kept)
	}
	h := buf[start:start]
	if len(b.zero) > 0 {
		h = appendHead(h, header{typ: frameZero, number: uint32(b.space)}, b.zero, nil)
	}
	if len(b.kept) > 0 {
		appendHead(h, header{
			typ:     frameBlock,
			code:    uint8(b.codec),
			number:  uint32(b.space),
			payload: uint32(len(payload)),
		}, b.kept, b.sums)
	}
	b.wire = buf[start : headroom+len(payload)]
}

// counters is what the block adds to the progress.
func (b *outBlock) counters() Counters {
	c := b.totals.counters()
	c.WireBytes = uint64(len(b.wire))
	for _, run := range b.missing {
		c.MissingPages += run.Pages
	}
	return c
}

// appendPage appends one page to a list of ranges, joining it to the last one
// where it continues it.
func appendPage(ranges []Range, page PageNo) []Range {
	if n := len(ranges); n > 0 {
		if last := &ranges[n-1]; last.First+PageNo(last.Pages) == page {
			last.Pages++
			return ranges
		}
	}
	return append(ranges, Range{page, 1})
}
