package pageserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"time"
)

// SenderOptions are the choices for a Sender. The zero value is a good one.
type SenderOptions struct {
	Workers    int    // goroutines that prepare blocks; 0: one for each core
	Codec      Codec  // Auto by default
	LimitBytes uint64 // bandwidth, in bytes on the wire a second; 0: no limit
}

// Sender writes a stream. It is cheap until the first Round.
type Sender struct {
	src        Source
	link       *link
	chooser    *chooser
	compressor compressor
	workers    int

	setDeadline func(time.Time) error // of w's writes; may be nil
	free        chan *outBlock        // made at the first round

	last   uint32 // number of the newest round
	rounds bool   // there has been one
	open   bool   // it has not come to its end
	closed bool
	failed error // the stream is broken for good

	mu       sync.Mutex
	progress Progress
}

// NewSender makes a Sender that writes to w what it reads from src. A sender of
// messages alone needs no src. If w has a method SetWriteDeadline it is used to
// get out of a Write when a context is canceled.
func NewSender(w io.Writer, src Source, options SenderOptions) *Sender {
	workers := options.Workers
	if workers == 0 {
		workers = runtime.GOMAXPROCS(0)
	}
	s := &Sender{
		src:        src,
		link:       newLink(w, options.LimitBytes),
		chooser:    newChooser(options.Codec, workers),
		compressor: newCompressor(workers),
		workers:    workers,
	}
	if d, ok := w.(interface{ SetWriteDeadline(time.Time) error }); ok {
		s.setDeadline = d.SetWriteDeadline
	}
	s.link.buf = appendPreface(s.link.buf)
	return s
}

// Progress returns what the stream has carried so far. Any goroutine may call
// it at any time.
func (s *Sender) Progress() Progress {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.progress
}

// Message sends a message. The receiver hands it out after it has placed
// everything sent before. The bandwidth limit does not hold it up.
func (s *Sender) Message(ctx context.Context, kind uint8, payload []byte) error {
	if len(payload) > MaxMessageBytes {
		return fmt.Errorf("sending a message of %d bytes: more than %d", len(payload), MaxMessageBytes)
	}
	return s.writing(ctx, func() error {
		head := appendHead(nil, header{typ: frameMessage, code: kind, payload: uint32(len(payload))}, nil, payload)
		if err := s.link.write(ctx, head, false); err != nil {
			return err
		}
		if err := s.link.write(ctx, payload, false); err != nil {
			return err
		}
		s.count(Counters{WireBytes: uint64(len(head) + len(payload))})
		return s.link.flush(ctx, false)
	})
}

// Close ends the stream; it does not close the writer. A stream whose last
// round is unfinished has no proper end: then Close only says so.
func (s *Sender) Close(ctx context.Context) error {
	if s.open {
		return fmt.Errorf("ending page stream: round %d is unfinished", s.last)
	}
	return s.writing(ctx, func() error {
		s.closed = true
		if err := s.link.write(ctx, appendHead(nil, header{typ: frameEnd}, nil, nil), false); err != nil {
			return err
		}
		return s.link.flush(ctx, false)
	})
}

// writing runs f, which writes to the link, gets it out of there when ctx
// ends, and remembers a failure: after it nobody knows how much was written.
func (s *Sender) writing(ctx context.Context, f func() error) error {
	if s.failed != nil {
		return s.failed
	}
	if s.closed {
		return errors.New("page stream has been closed")
	}
	stop := interrupt(ctx, s.setDeadline)
	err := f()
	if !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		s.failed = fmt.Errorf("sending page stream: %w", err)
	}
	return s.failed
}

// count adds to the progress of the stream.
func (s *Sender) count(c Counters) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.progress.Total.add(c)
}
