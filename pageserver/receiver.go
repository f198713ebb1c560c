package pageserver

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync"
	"time"
)

// Pages on their way in:
//
//  1. read takes frames off the stream and hands those with pages on;  (the caller of Next)
//  2. place checks, decompresses and places them and counts.           (workers, at the same time)
//
// At the end of a round and at a message the reader waits until the workers
// have placed all that it has handed on.

// ReceiverOptions are the choices for a Receiver. The zero value is a good one.
type ReceiverOptions struct {
	Workers int // goroutines that place pages; 0: one for each core
}

// Message is what the other side's [Sender.Message] has sent.
type Message struct {
	Kind    uint8
	Payload []byte
}

// Receiver reads a stream. It is cheap until the first page arrives.
type Receiver struct {
	r            *bufio.Reader
	sink         Sink
	decompressor decompressor
	workers      int

	setDeadline func(time.Time) error // of reads; may be nil
	free        chan *inBlock         // made when the first page arrives

	begun  bool   // the preface has been read
	rounds bool   // there has been a round
	open   bool   // it has not come to its end
	last   uint32 // its number
	failed error  // what the stream came to; io.EOF at its proper end

	head [headerBytes]byte // of the frame being read

	mu       sync.Mutex
	progress Progress
	placed   roundTotals // in this round
}

// NewReceiver makes a Receiver that reads from r and places into sink. A
// receiver of messages alone needs no sink. If r has a method SetReadDeadline it
// is used to get out of a Read when a context is canceled or the sink fails.
func NewReceiver(r io.Reader, sink Sink, options ReceiverOptions) *Receiver {
	v := &Receiver{
		r:       bufio.NewReaderSize(r, linkBufferBytes),
		sink:    sink,
		workers: options.Workers,
	}
	if v.workers == 0 {
		v.workers = runtime.GOMAXPROCS(0)
	}
	v.decompressor = newDecompressor(v.workers)
	if d, ok := r.(interface{ SetReadDeadline(time.Time) error }); ok {
		v.setDeadline = d.SetReadDeadline
	}
	return v
}

// Progress returns what has been placed so far. Any goroutine may call it at any time.
func (v *Receiver) Progress() Progress {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.progress
}

// Next places pages up to the next message and returns that. Everything sent
// before it has been placed by then. At the proper end of the stream it returns
// io.EOF, and an error that is io.ErrUnexpectedEOF where the stream was cut off.
//
// No call of the sink is in flight when Next returns: after a cancellation it
// waits for those that are.
func (v *Receiver) Next(ctx context.Context) (Message, error) {
	if v.failed != nil {
		return Message{}, v.failed
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := interrupt(ctx, v.setDeadline)
	c := &crew{receiver: v, fail: cancel}
	msg, err := v.read(ctx, c)
	c.dismiss()
	if !stop() { // the caller or a worker has canceled; anything else comes of that
		err = context.Cause(ctx)
	}
	switch {
	case err == io.EOF: //nolint:errorlint // only the end of the stream itself is meant, not an io.EOF that a sink returned
		v.failed = io.EOF
	case err != nil:
		v.failed = fmt.Errorf("receiving page stream: %w", err)
	}
	if v.failed != nil {
		return Message{}, v.failed
	}
	return msg, nil
}

// read handles frames up to a message or the end of the stream.
func (v *Receiver) read(ctx context.Context, c *crew) (Message, error) {
	if !v.begun {
		var preface [prefaceBytes]byte
		if err := v.readFull(preface[:]); err != nil {
			return Message{}, err
		}
		if err := checkPreface(preface[:]); err != nil {
			return Message{}, err
		}
		v.begun = true
	}
	for {
		if ctx.Err() != nil {
			return Message{}, context.Cause(ctx)
		}
		if err := v.readFull(v.head[:]); err != nil {
			return Message{}, err
		}
		h, err := parseHeader(v.head[:])
		if err != nil {
			return Message{}, err
		}
		switch h.typ {
		case frameBlock, frameZero, frameDrop:
			err = v.readPages(ctx, c, h)
		case frameRoundBegin:
			err = v.beginRound(h)
		case frameRoundEnd:
			err = v.endRound(ctx, c, h)
		case frameMessage:
			payload, err := v.readPayload(h)
			if err != nil {
				return Message{}, err
			}
			c.wait()
			return Message{h.code, payload}, nil
		case frameEnd:
			if v.open {
				return Message{}, fmt.Errorf("%w: it ends in round %d", ErrCorrupt, v.last)
			}
			if h.body != 0 {
				return Message{}, fmt.Errorf("%w: checksum of an %v", ErrCorrupt, h.typ)
			}
			return Message{}, io.EOF
		}
		if err != nil {
			return Message{}, err
		}
	}
}

// readFull fills p. A stream that ends here has been cut off.
func (v *Receiver) readFull(p []byte) error {
	_, err := io.ReadFull(v.r, p)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return fmt.Errorf("reading: %w", err)
	}
	return nil
}

// readPayload reads and checks the payload of a message or a round end. Its
// memory grows with what arrives, not with what the header promises.
func (v *Receiver) readPayload(h header) ([]byte, error) {
	var buf bytes.Buffer
	if _, err := io.CopyN(&buf, v.r, int64(h.payload)); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("reading: %w", err)
	}
	if bodyChecksum(nil, buf.Bytes()) != h.body {
		return nil, fmt.Errorf("%w: checksum of a %v", ErrCorrupt, h.typ)
	}
	return buf.Bytes(), nil
}

func (v *Receiver) beginRound(h header) error {
	if v.open || v.rounds && h.number <= v.last {
		return fmt.Errorf("%w: round %d begins after round %d (unfinished: %t)", ErrCorrupt, h.number, v.last, v.open)
	}
	if h.body != 0 {
		return fmt.Errorf("%w: checksum of a %v", ErrCorrupt, h.typ)
	}
	v.rounds, v.open, v.last = true, true, h.number
	v.mu.Lock()
	defer v.mu.Unlock()
	v.progress.N, v.progress.Round = h.number, Counters{WireBytes: headerBytes}
	v.progress.Total.WireBytes += headerBytes
	v.placed = roundTotals{}
	return nil
}

// endRound waits until the round has been placed and compares what was placed
// with what was sent.
func (v *Receiver) endRound(ctx context.Context, c *crew, h header) error {
	if !v.open || h.number != v.last {
		return fmt.Errorf("%w: end of round %d in round %d (unfinished: %t)", ErrCorrupt, h.number, v.last, v.open)
	}
	payload, err := v.readPayload(h)
	if err != nil {
		return err
	}
	sent, err := parseTotals(payload)
	if err != nil {
		return err
	}
	c.wait()
	if ctx.Err() != nil { // not all of it has been placed
		return context.Cause(ctx)
	}
	v.open = false
	if placed := v.count(roundTotals{}, headerBytes+roundEndBytes); placed != sent {
		return fmt.Errorf("%w: round %d: sent %v; placed %v", ErrCorrupt, v.last, sent, placed)
	}
	return nil
}

// readPages takes the rest of a frame with pages off the stream and hands it on.
func (v *Receiver) readPages(ctx context.Context, c *crew, h header) error {
	if !v.open {
		return fmt.Errorf("%w: %v outside of a round", ErrCorrupt, h.typ)
	}
	b := c.takeBlock(ctx)
	b.header = h
	b.table = slices.Grow(b.table[:0], rangeBytes*int(h.ranges))[:rangeBytes*int(h.ranges)]
	if err := v.readFull(b.table); err != nil {
		v.free <- b
		return err
	}
	b.payload = slices.Grow(b.payload[:0], int(h.payload))[:h.payload]
	if err := v.readFull(b.payload); err != nil {
		v.free <- b
		return err
	}
	c.give(b)
	return nil
}

// count counts what was placed and returns what has been in this round.
func (v *Receiver) count(t roundTotals, wireBytes int) roundTotals {
	c := t.counters()
	c.WireBytes = uint64(wireBytes)
	v.mu.Lock()
	defer v.mu.Unlock()
	v.placed.add(t)
	v.progress.Round.add(c)
	v.progress.Total.add(c)
	return v.placed
}
