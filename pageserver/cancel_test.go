package pageserver_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/pagurus-project/pagurus/pageserver"
	"github.com/pagurus-project/pagurus/pageserver/pagetest"
)

var errTest = errors.New("made to fail")

// endless yields pages for ever.
func endless(yield func(pageserver.Run) bool) {
	for i := pageserver.PageNo(0); yield(run(0, i, 1)); i++ {
	}
}

// pattern is a source with content at every page, none of it zero.
type pattern struct{ reads atomic.Int64 }

func (p *pattern) Read(_ pageserver.SpaceID, _ []pageserver.Range, buf []byte) ([]pageserver.Range, error) {
	p.reads.Add(1)
	pagetest.Random(newRand(1), buf)
	return nil, nil
}

// hooked is a sink that calls a function before it places anything.
type hooked struct {
	*pagetest.Memory
	before func(pageserver.SpaceID, []pageserver.Range) error
}

func (h hooked) Write(space pageserver.SpaceID, ranges []pageserver.Range, buf []byte) error {
	if err := h.before(space, ranges); err != nil {
		return err
	}
	return h.Memory.Write(space, ranges, buf)
}

// failing is a source that fails after some reads.
type failing struct {
	pattern
	after int64
}

func (f *failing) Read(space pageserver.SpaceID, ranges []pageserver.Range, buf []byte) ([]pageserver.Range, error) {
	if f.reads.Load() >= f.after {
		return nil, errTest
	}
	return f.pattern.Read(space, ranges, buf)
}

// Each of these waits for a peer that does nothing; the context must end it,
// and the error must be the context's.
func TestCancel(t *testing.T) {
	begun := streamOf(frame{typ: 4})
	for _, test := range []struct {
		name string
		call func(ctx context.Context, c io.ReadWriter) error
		sent []byte // by the peer, before it falls silent
	}{
		{"round on a full link", func(ctx context.Context, c io.ReadWriter) error {
			_, err := pageserver.NewSender(c, new(pattern), pageserver.SenderOptions{Codec: pageserver.None}).
				Round(ctx, pageserver.RoundSpec{Runs: endless})
			return err
		}, nil},
		{"message on a full link", func(ctx context.Context, c io.ReadWriter) error {
			return pageserver.NewSender(c, nil, pageserver.SenderOptions{}).Message(ctx, 0, make([]byte, 1<<20))
		}, nil},
		{"round under a limit", func(ctx context.Context, _ io.ReadWriter) error {
			_, err := pageserver.NewSender(io.Discard, new(pattern), pageserver.SenderOptions{LimitBytes: 1000}).
				Round(ctx, pageserver.RoundSpec{Runs: endless})
			return err
		}, nil},
		{"nothing arrives", func(ctx context.Context, c io.ReadWriter) error {
			_, err := pageserver.NewReceiver(c, nil, pageserver.ReceiverOptions{}).Next(ctx)
			return err
		}, nil},
		{"nothing more arrives", func(ctx context.Context, c io.ReadWriter) error {
			_, err := pageserver.NewReceiver(c, new(pagetest.Memory), pageserver.ReceiverOptions{}).Next(ctx)
			return err
		}, append(begun, frame{typ: 2, ranges: []uint64{0x1000}}.bytes()...)},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := pagetest.Pair(pagetest.Link{}, pagetest.Link{})
				defer a.Close()
				defer b.Close()
				if _, err := b.Write(test.sent); err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithCancelCause(t.Context())
				done := make(chan error)
				go func() { done <- test.call(ctx, a) }()
				synctest.Wait()
				select {
				case err := <-done:
					t.Fatalf("ended before it was canceled: %v", err)
				default:
				}
				cancel(errTest)
				synctest.Wait() // whatever still takes time, takes too long
				select {
				case err := <-done:
					if !errors.Is(err, errTest) {
						t.Errorf("error %v, want the cause of the cancellation", err)
					}
				default:
					t.Fatal("goes on after it was canceled")
				}
			})
		})
	}
}

func TestCanceledStreamStaysBroken(t *testing.T) {
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	stream, _ := sample(t, pageserver.None)
	r := pageserver.NewReceiver(bytes.NewReader(stream), new(pagetest.Memory), pageserver.ReceiverOptions{})
	s := pageserver.NewSender(io.Discard, new(pagetest.Memory), pageserver.SenderOptions{})
	for _, ctx := range []context.Context{canceled, t.Context()} {
		if _, err := r.Next(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("receiver: %v", err)
		}
		if err := s.Message(ctx, 0, nil); !errors.Is(err, context.Canceled) {
			t.Errorf("sender: %v", err)
		}
	}
}

// After a failure of the source the destination can still be told why; a round
// or a proper end cannot follow.
func TestFailureOfTheSource(t *testing.T) {
	ctx := t.Context()
	var buf bytes.Buffer
	s := pageserver.NewSender(&buf, &failing{after: 3}, pageserver.SenderOptions{})
	_, err := s.Round(ctx, pageserver.RoundSpec{N: 1, Runs: endless})
	if !errors.Is(err, errTest) || !strings.Contains(err.Error(), "space 0") {
		t.Errorf("round: %v", err)
	}
	if _, err := s.Round(ctx, pageserver.RoundSpec{N: 2}); err == nil {
		t.Error("another round was accepted")
	}
	if err := s.Message(ctx, 7, []byte("why")); err != nil {
		t.Error(err)
	}
	if err := s.Close(ctx); err == nil {
		t.Error("the stream was ended as if it were whole")
	}
	_, messages, err := receiveAll(buf.Bytes())
	if len(messages) != 1 || messages[0].Kind != 7 || string(messages[0].Payload) != "why" {
		t.Errorf("messages %v", messages)
	}
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error(err)
	}
}

func TestSourceThatNamesOtherPages(t *testing.T) {
	s := pageserver.NewSender(io.Discard, misleading{}, pageserver.SenderOptions{})
	_, err := s.Round(t.Context(), pageserver.RoundSpec{Runs: slices.Values([]pageserver.Run{run(0, 10, 5), run(0, 20, 5)})})
	if err == nil || !strings.Contains(err.Error(), "not asked for") {
		t.Error(err)
	}
}

// misleading says that pages are missing which nobody asked for.
type misleading struct{}

func (misleading) Read(pageserver.SpaceID, []pageserver.Range, []byte) ([]pageserver.Range, error) {
	return []pageserver.Range{{First: 14, Pages: 2}}, nil
}

// A failing sink ends Next at once, also while the other side is silent, and
// the other direction of the connection still works.
func TestFailureOfTheSink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pagetest.Pair(pagetest.Link{}, pagetest.Link{})
		defer a.Close()
		defer b.Close()
		page := bytes.Repeat([]byte{7}, pageserver.PageSize)
		if _, err := a.Write(streamOf(frame{typ: 4}, frame{typ: 1, code: 1, number: 3, ranges: []uint64{0x5000}, payload: page})); err != nil {
			t.Fatal(err)
		}
		sink := hooked{new(pagetest.Memory), func(pageserver.SpaceID, []pageserver.Range) error { return errTest }}
		r := pageserver.NewReceiver(b, sink, pageserver.ReceiverOptions{})
		for range 2 { // it stays failed
			_, err := r.Next(t.Context())
			if !errors.Is(err, errTest) || !strings.Contains(err.Error(), "space 3 0x5000+1") {
				t.Errorf("error %q", err)
			}
		}
		if err := pageserver.NewSender(b, nil, pageserver.SenderOptions{}).Message(t.Context(), 1, []byte("why")); err != nil {
			t.Error(err)
		}
		msg, err := pageserver.NewReceiver(a, nil, pageserver.ReceiverOptions{}).Next(t.Context())
		if err != nil || string(msg.Payload) != "why" {
			t.Errorf("%q, %v", msg.Payload, err)
		}
	})
}

func TestPagesWithoutASink(t *testing.T) {
	stream, _ := sample(t, pageserver.None)
	_, err := pageserver.NewReceiver(bytes.NewReader(stream), nil, pageserver.ReceiverOptions{}).Next(t.Context())
	if err == nil || errors.Is(err, pageserver.ErrCorrupt) {
		t.Error(err)
	}
}

// Behind a sink that stands still everything stands still, with a bounded
// number of pages in memory.
func TestSlowSinkHoldsUpTheSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const (
			workers = 2
			// Blocks of the sender and of the receiver, and what the link holds.
			inFlight = 2*workers + 2 + 2*workers + 1 + 2
			blocks   = 10 * inFlight
			pages    = 64
		)
		src := new(pattern)
		release := make(chan struct{})
		var mu sync.Mutex
		placing, most := 0, 0
		sink := hooked{new(pagetest.Memory), func(pageserver.SpaceID, []pageserver.Range) error {
			mu.Lock()
			placing++
			most = max(most, placing)
			mu.Unlock()
			<-release
			mu.Lock()
			placing--
			mu.Unlock()
			return nil
		}}
		p := connect(src, sink, pageserver.SenderOptions{Workers: workers, Codec: pageserver.None})
		done := make(chan error)
		go func() {
			_, err := p.sender.Round(t.Context(), pageserver.RoundSpec{Runs: slices.Values([]pageserver.Run{run(0, 0, blocks*pages)})})
			done <- err
		}()
		synctest.Wait()
		if n := src.reads.Load(); n < workers || n > inFlight {
			t.Errorf("%d blocks were read while the sink stands still, want at most %d", n, inFlight)
		}
		if most != workers {
			t.Errorf("%d blocks are being placed at the same time, want %d", most, workers)
		}
		close(release)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		p.barrier(t, t.Context(), nil)
		if n := src.reads.Load(); n != blocks {
			t.Errorf("%d blocks were read, want %d", n, blocks)
		}
		p.end(t, t.Context())
	})
}

// Nothing of a round is placed before all of the round before it, although
// rounds follow each other on the wire without a pause.
func TestRoundsAreOrdered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		var mu sync.Mutex
		var order []pageserver.SpaceID
		sink := hooked{new(pagetest.Memory), func(space pageserver.SpaceID, _ []pageserver.Range) error {
			if space == 1 {
				<-release
			}
			mu.Lock()
			defer mu.Unlock()
			order = append(order, space)
			return nil
		}}
		p := connect(new(pattern), sink, pageserver.SenderOptions{Workers: 4})
		for n := range uint32(2) {
			space := pageserver.SpaceID(n + 1)
			if _, err := p.sender.Round(t.Context(), pageserver.RoundSpec{N: n, Runs: slices.Values([]pageserver.Run{run(space, 0, 1)})}); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		mu.Lock()
		if len(order) > 0 {
			t.Errorf("spaces %v placed before the first round", order)
		}
		mu.Unlock()
		close(release)
		p.barrier(t, t.Context(), nil)
		if !slices.Equal(order, []pageserver.SpaceID{1, 2}) {
			t.Errorf("spaces placed in the order %v", order)
		}
		p.end(t, t.Context())
	})
}
