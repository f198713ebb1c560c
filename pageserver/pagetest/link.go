package pagetest

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// Link is what one direction of a connection does to what goes through it. The
// zero value passes everything on at once.
type Link struct {
	BytesPerSecond float64       // 0: no limit
	Delay          time.Duration // from one end to the other
	BufferBytes    int           // by how much the writer may be ahead of the reader; 0: 256 KiB
	// Damage flips bits: each mask at its offset in the direction's stream.
	Damage map[int64]byte
	// CutAfter ends the connection once that many bytes have gone into this
	// direction; 0: never.
	CutAfter int64
}

// Pair returns the two ends of a connection. What is written to a goes through
// toB, what is written to b through toA. A connection that was cut, or closed at
// the other end, reads as ended after what was under way, and refuses writes.
func Pair(toB, toA Link) (a, b net.Conn) {
	var mu sync.Mutex // both directions': a cut ends both
	changed := sync.NewCond(&mu)
	ab, ba := newPipe(toB, changed), newPipe(toA, changed)
	ab.back, ba.back = ba, ab
	return &conn{in: ba, out: ab}, &conn{in: ab, out: ba}
}

// conn is one end of a connection.
type conn struct{ in, out *pipe }

func (c *conn) Read(b []byte) (int, error)  { return c.in.read(b) }
func (c *conn) Write(b []byte) (int, error) { return c.out.write(b) }

func (c *conn) Close() error {
	mu := c.in.changed.L
	mu.Lock()
	defer mu.Unlock()
	c.in.abandoned = true
	c.in.ended = true
	c.out.ended = true
	c.in.changed.Broadcast()
	return nil
}

func (c *conn) SetReadDeadline(t time.Time) error {
	c.in.setDeadline(&c.in.reading, t)
	return nil
}

func (c *conn) SetWriteDeadline(t time.Time) error {
	c.out.setDeadline(&c.out.writing, t)
	return nil
}

func (c *conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

func (*conn) LocalAddr() net.Addr  { return addr{} }
func (*conn) RemoteAddr() net.Addr { return addr{} }

type addr struct{}

func (addr) Network() string { return "pagetest" }
func (addr) String() string  { return "pagetest" }

// pipe is one direction: a queue of pieces on their way.
type pipe struct {
	link    Link
	back    *pipe
	changed *sync.Cond // its lock guards all that follows

	queue     []piece
	size      int       // bytes in the queue
	entered   int64     // bytes that have ever gone in
	busySince time.Time // since when the link has been kept busy,
	busyBytes int64     // by how much,
	idle      time.Time // and when the last of it will have left the writer's end
	ended     bool      // nothing more goes in
	abandoned bool      // nothing more comes out
	reading   deadline
	writing   deadline
}

type piece struct {
	due  time.Time
	data []byte
}

// deadline is that of the reads or the writes of a pipe.
type deadline struct {
	at     time.Time
	passed bool
}

func newPipe(l Link, changed *sync.Cond) *pipe {
	if l.BufferBytes == 0 {
		l.BufferBytes = 256 << 10
	}
	return &pipe{link: l, changed: changed}
}

func (p *pipe) setDeadline(d *deadline, t time.Time) {
	p.changed.L.Lock()
	defer p.changed.L.Unlock()
	*d = deadline{at: t, passed: !t.IsZero() && !t.After(time.Now())}
	if !t.IsZero() && !d.passed {
		time.AfterFunc(time.Until(t), func() {
			p.changed.L.Lock()
			defer p.changed.L.Unlock()
			d.passed = d.passed || d.at.Equal(t)
			p.changed.Broadcast()
		})
	}
	p.changed.Broadcast()
}

func (p *pipe) write(b []byte) (n int, err error) {
	p.changed.L.Lock()
	defer p.changed.L.Unlock()
	for n < len(b) {
		for !p.ended && !p.writing.passed && p.size >= p.link.BufferBytes {
			p.changed.Wait()
		}
		switch {
		case p.ended:
			return n, io.ErrClosedPipe
		case p.writing.passed:
			return n, os.ErrDeadlineExceeded
		}
		n += p.enter(b[n:])
	}
	return n, nil
}

// enter puts the next piece of b into the queue.
func (p *pipe) enter(b []byte) int {
	const largest = 16 << 10 // so that a slow link trickles
	b = bytes.Clone(b[:min(len(b), p.link.BufferBytes-p.size, largest)])
	if left := p.link.CutAfter - p.entered; p.link.CutAfter > 0 && int64(len(b)) >= left {
		b = b[:left]
		p.ended, p.back.ended = true, true
	}
	for at, mask := range p.link.Damage {
		if i := at - p.entered; i >= 0 && i < int64(len(b)) {
			b[i] ^= mask
		}
	}
	now := time.Now()
	if p.idle.Before(now) {
		p.idle, p.busySince, p.busyBytes = now, now, 0
	}
	if p.link.BytesPerSecond > 0 {
		// From the sum, so that roundings do not add up.
		p.busyBytes += int64(len(b))
		p.idle = p.busySince.Add(time.Duration(float64(p.busyBytes) / p.link.BytesPerSecond * float64(time.Second)))
	}
	due := p.idle.Add(p.link.Delay)
	if due.After(now) {
		time.AfterFunc(due.Sub(now), p.wake)
	}
	p.queue = append(p.queue, piece{due, b})
	p.size += len(b)
	p.entered += int64(len(b))
	p.changed.Broadcast()
	return len(b)
}

func (p *pipe) read(b []byte) (int, error) {
	p.changed.L.Lock()
	defer p.changed.L.Unlock()
	for {
		switch {
		case p.abandoned:
			return 0, net.ErrClosed
		case p.reading.passed:
			return 0, os.ErrDeadlineExceeded
		case len(p.queue) > 0 && !p.queue[0].due.After(time.Now()):
			return p.leave(b), nil
		case len(p.queue) == 0 && p.ended:
			return 0, io.EOF
		case len(b) == 0:
			return 0, nil
		}
		p.changed.Wait()
	}
}

// wake has the reader look again. It takes the lock, or it might come between
// the reader's look and its waiting.
func (p *pipe) wake() {
	p.changed.L.Lock()
	defer p.changed.L.Unlock()
	p.changed.Broadcast()
}

// leave takes what has arrived out of the queue's first piece.
func (p *pipe) leave(b []byte) int {
	first := &p.queue[0]
	n := copy(b, first.data)
	if first.data = first.data[n:]; len(first.data) == 0 {
		p.queue = p.queue[1:]
	}
	p.size -= n
	p.changed.Broadcast()
	return n
}
