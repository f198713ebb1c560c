package pageserver

import (
	"context"
	"fmt"
	"io"
	"time"

	"golang.org/x/time/rate"
)

const (
	// linkBufferBytes is where frames gather that are too small to go alone: the
	// content of one TLS record.
	linkBufferBytes = 16 << 10
	// limitBurstBytes is what goes at once under a limit, so that the stream is
	// smooth for others on the link even at a megabit.
	limitBurstBytes = 64 << 10
)

// link is the writing end of a stream.
type link struct {
	w       io.Writer
	limiter *rate.Limiter // nil: no limit
	buf     []byte

	sent uint64        // bytes that w has taken
	busy time.Duration // for how long w and the limiter kept the writer waiting
}

func newLink(w io.Writer, limitBytes uint64) *link {
	l := &link{w: w, buf: make([]byte, 0, linkBufferBytes)}
	if limitBytes > 0 {
		l.limiter = rate.NewLimiter(rate.Limit(limitBytes), limitBurstBytes)
	}
	return l
}

// write sends p, unless it is small enough to wait for what comes next.
func (l *link) write(ctx context.Context, p []byte, limited bool) error {
	if len(p) <= cap(l.buf)-len(l.buf) {
		l.buf = append(l.buf, p...)
		return nil
	}
	if len(l.buf) > 0 {
		n := cap(l.buf) - len(l.buf)
		l.buf = append(l.buf, p[:n]...)
		if err := l.flush(ctx, limited); err != nil {
			return err
		}
		return l.write(ctx, p[n:], limited)
	}
	return l.push(ctx, p, limited)
}

func (l *link) flush(ctx context.Context, limited bool) error {
	err := l.push(ctx, l.buf, limited)
	l.buf = l.buf[:0]
	return err
}

func (l *link) push(ctx context.Context, p []byte, limited bool) error {
	start := time.Now()
	defer func() { l.busy += time.Since(start) }()
	for len(p) > 0 {
		n := len(p)
		if limited {
			n = min(n, limitBurstBytes)
			if err := l.limiter.WaitN(ctx, n); err != nil {
				return fmt.Errorf("waiting for bandwidth: %w", err)
			}
		} else if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if _, err := l.w.Write(p[:n]); err != nil {
			return fmt.Errorf("writing page stream: %w", err)
		}
		l.sent += uint64(n)
		p = p[n:]
	}
	return nil
}

// interrupt arranges that ctx's end ends the reads or writes in flight, by
// setDeadline if that is not nil. stop reports whether ctx has not interfered.
func interrupt(ctx context.Context, setDeadline func(time.Time) error) (stop func() bool) {
	return context.AfterFunc(ctx, func() {
		if setDeadline != nil {
			// It fails on something that cannot time out, such as a regular
			// file; then the operation in flight ends by itself.
			_ = setDeadline(time.Unix(1, 0))
		}
	})
}
