package pageserver_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/pagurus-project/pagurus/pageserver"
	"github.com/pagurus-project/pagurus/pageserver/pagetest"
)

var update = flag.Bool("update", false, "write the golden files in testdata")

func run(space pageserver.SpaceID, first pageserver.PageNo, pages uint64) pageserver.Run {
	return pageserver.Run{Space: space, Range: pageserver.Range{First: first, Pages: pages}}
}

func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 0)) }

// fill puts pages of the heap's mixture into memory.
func fill(m *pagetest.Memory, rng *rand.Rand, run pageserver.Run) {
	content := make([]byte, pageserver.PageSize)
	for i := range pageserver.PageNo(run.Pages) {
		pagetest.Heap(rng, content)
		m.Set(run.Space, run.First+i, content)
	}
}

// receiveAll places a whole stream.
func receiveAll(stream []byte) (*pagetest.Memory, []pageserver.Message, error) {
	m := new(pagetest.Memory)
	r := pageserver.NewReceiver(bytes.NewReader(stream), m, pageserver.ReceiverOptions{Workers: 2})
	var messages []pageserver.Message
	for {
		msg, err := r.Next(context.Background())
		if err != nil {
			return m, messages, err
		}
		messages = append(messages, msg)
	}
}

// sample writes a small stream with everything in it and returns what it leaves
// in memory.
func sample(tb testing.TB, codec pageserver.Codec) (stream []byte, left *pagetest.Memory) {
	tb.Helper()
	ctx := tb.Context()
	m := new(pagetest.Memory)
	m.Set(1, 0x10, []byte("a page with content"))
	m.Set(1, 0x11, nil)
	m.Set(1, 0x12, bytes.Repeat([]byte("abcdefg "), 300))
	m.Set(7, 1<<52-1, []byte("the last page there is"))
	var buf bytes.Buffer
	s := pageserver.NewSender(&buf, m, pageserver.SenderOptions{Workers: 1, Codec: codec})
	_, err := s.Round(ctx, pageserver.RoundSpec{Runs: slices.Values([]pageserver.Run{run(1, 0x10, 4), run(7, 1<<52-1, 1)})})
	err = errors.Join(err, s.Message(ctx, 3, []byte("a message")))
	m.Remove(1, 0x12)
	m.Set(1, 0x20, []byte("changed"))
	_, err2 := s.Round(ctx, pageserver.RoundSpec{
		N:     2,
		Runs:  slices.Values([]pageserver.Run{run(1, 0x20, 1)}),
		Drops: slices.Values([]pageserver.Run{run(1, 0x12, 1)}),
	})
	if err := errors.Join(err, err2, s.Message(ctx, 4, nil), s.Close(ctx)); err != nil {
		tb.Fatal(err)
	}
	return buf.Bytes(), m
}

var allCodecs = []pageserver.Codec{pageserver.None, pageserver.S2, pageserver.Zstd}

func TestGolden(t *testing.T) {
	for _, codec := range allCodecs {
		t.Run(codec.String(), func(t *testing.T) {
			file := filepath.Join("testdata", codec.String()+".stream")
			stream, want := sample(t, codec)
			if *update {
				if err := os.WriteFile(file, stream, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			golden, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			// What a codec writes may change with its library; what it reads may not.
			if codec == pageserver.None && !bytes.Equal(stream, golden) {
				t.Errorf("the format has changed: the same stream differs from %s", file)
			}
			got, messages, err := receiveAll(golden)
			if err != io.EOF { //nolint:errorlint // the proper end is io.EOF itself
				t.Fatal(err)
			}
			if d := want.Differs(got); d != "" {
				t.Error(d)
			}
			wantMessages := []pageserver.Message{{Kind: 3, Payload: []byte("a message")}, {Kind: 4, Payload: []byte{}}}
			if d := cmp.Diff(wantMessages, messages); d != "" {
				t.Error(d)
			}
		})
	}
}

// peers is two sides of a migration over one connection: pages and messages
// one way, acknowledgements the other.
type peers struct {
	sender   *pageserver.Sender
	receiver *pageserver.Receiver // the other side's
	acks     *pageserver.Receiver
	finished chan error
}

// connect starts a destination that places into m and acknowledges each message.
func connect(src pageserver.Source, sink pageserver.Sink, options pageserver.SenderOptions) *peers {
	a, b := pagetest.Pair(pagetest.Link{}, pagetest.Link{})
	p := &peers{
		sender:   pageserver.NewSender(a, src, options),
		receiver: pageserver.NewReceiver(b, sink, pageserver.ReceiverOptions{Workers: options.Workers}),
		acks:     pageserver.NewReceiver(a, nil, pageserver.ReceiverOptions{}),
		finished: make(chan error, 1),
	}
	go func() {
		ctx := context.Background()
		defer b.Close()
		acks := pageserver.NewSender(b, nil, pageserver.SenderOptions{})
		for {
			msg, err := p.receiver.Next(ctx)
			if err == nil {
				err = acks.Message(ctx, msg.Kind, msg.Payload)
			}
			if err != nil {
				p.finished <- err
				return
			}
		}
	}()
	return p
}

// barrier returns when everything sent has been placed.
func (p *peers) barrier(tb rapid.TB, ctx context.Context, payload []byte) {
	tb.Helper()
	if err := p.sender.Message(ctx, 9, payload); err != nil {
		tb.Fatal(err)
	}
	ack, err := p.acks.Next(ctx)
	if err != nil {
		tb.Fatal(err)
	}
	if ack.Kind != 9 || !bytes.Equal(ack.Payload, payload) {
		tb.Fatalf("message of kind %d with %d bytes came back, want kind 9 with %d bytes", ack.Kind, len(ack.Payload), len(payload))
	}
}

func (p *peers) end(tb rapid.TB, ctx context.Context) {
	tb.Helper()
	if err := p.sender.Close(ctx); err != nil {
		tb.Fatal(err)
	}
	if err := <-p.finished; err != io.EOF { //nolint:errorlint // the proper end is io.EOF itself
		tb.Fatal(err)
	}
}

// Any rounds of writing, vanishing and coming back leave both sides equal, and
// both sides count the same.
func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ctx := context.Background()
		rng := newRand(rapid.Uint64().Draw(t, "seed"))
		src, dst := new(pagetest.Memory), new(pagetest.Memory)
		p := connect(src, dst, pageserver.SenderOptions{
			Workers: rapid.IntRange(1, 4).Draw(t, "workers"),
			Codec:   rapid.SampledFrom(append(allCodecs, pageserver.Auto)).Draw(t, "codec"),
		})
		drawRun := rapid.Custom(func(t *rapid.T) pageserver.Run {
			return run(
				pageserver.SpaceID(rapid.IntRange(1, 3).Draw(t, "space")),
				pageserver.PageNo(rapid.IntRange(0, 500).Draw(t, "first")),
				uint64(rapid.IntRange(1, 100).Draw(t, "pages")))
		})
		never := run(99, 0, 1) // a page that vanished before it could be read
		for n := range uint32(rapid.IntRange(1, 4).Draw(t, "rounds")) {
			written := rapid.SliceOfN(drawRun, 0, 4).Draw(t, "written")
			vanished := rapid.SliceOfN(drawRun, 0, 2).Draw(t, "vanished")
			touched := new(pagetest.Memory) // which pages; their content does not matter
			for _, run := range written {
				fill(src, rng, run)
				fill(touched, rng, run)
			}
			for _, run := range vanished {
				fill(touched, rng, run)
				for i := range pageserver.PageNo(run.Pages) {
					src.Remove(run.Space, run.First+i)
				}
			}
			var dirty, gone []pageserver.Run
			var dirtyPages, gonePages uint64
			for _, r := range touched.Runs() {
				for i := range pageserver.PageNo(r.Pages) {
					if one := run(r.Space, r.First+i, 1); src.Page(one.Space, one.First) != nil {
						dirty = append(dirty, one)
						dirtyPages++
					} else {
						gone = append(gone, one)
						gonePages++
					}
				}
			}
			dirty = append(dirty, never)

			stats, err := p.sender.Round(ctx, pageserver.RoundSpec{N: n, Runs: slices.Values(dirty), Drops: slices.Values(gone)})
			if err != nil {
				t.Fatal(err)
			}
			p.barrier(t, ctx, []byte("round"))
			if d := src.Differs(dst); d != "" {
				t.Fatalf("after round %d: %s", n, d)
			}
			if d := cmp.Diff([]pageserver.Run{never}, stats.Missing); d != "" {
				t.Fatal(d)
			}
			want := pageserver.Counters{
				Pages:        dirtyPages,
				ZeroPages:    stats.ZeroPages,
				DroppedPages: gonePages,
				MissingPages: 1,
				Bytes:        dirtyPages * pageserver.PageSize,
				WireBytes:    stats.WireBytes,
			}
			if d := cmp.Diff(want, stats.Counters); d != "" {
				t.Fatal(d)
			}
			if d := cmp.Diff(want, p.sender.Progress().Round); d != "" {
				t.Fatal(d)
			}
			want.MissingPages = 0
			if d := cmp.Diff(want, p.receiver.Progress().Round); d != "" {
				t.Fatal(d)
			}
		}
		p.end(t, ctx)
	})
}

func TestZeroPagesCostAFewBytes(t *testing.T) {
	var buf bytes.Buffer
	const pages = 1 << 16
	s := pageserver.NewSender(&buf, make(flat, 256<<20), pageserver.SenderOptions{})
	stats, err := s.Round(t.Context(), pageserver.RoundSpec{Runs: slices.Values([]pageserver.Run{run(0, 0, pages)})})
	if err != nil {
		t.Fatal(err)
	}
	if stats.ZeroPages != pages || stats.WireBytes > pages {
		t.Errorf("%d of %d zero pages found, %d bytes for them", stats.ZeroPages, pages, stats.WireBytes)
	}
	if got := uint64(buf.Len()) - 16; got != stats.WireBytes { // without the preface
		t.Errorf("%d bytes counted, %d written", stats.WireBytes, got)
	}
}

func TestMessages(t *testing.T) {
	ctx := t.Context()
	p := connect(nil, nil, pageserver.SenderOptions{})
	for _, n := range []int{0, 1, 100, 16 << 10, 16<<10 + 1, 3 << 20} {
		payload := make([]byte, n)
		pagetest.Random(newRand(uint64(n)), payload)
		p.barrier(t, ctx, payload)
	}
	if err := p.sender.Message(ctx, 1, make([]byte, pageserver.MaxMessageBytes+1)); err == nil {
		t.Error("a message that no receiver would take was sent")
	}
	p.barrier(t, ctx, nil) // nothing of it has gone out
	p.end(t, ctx)
}

// A message that comes out has all that was sent before it behind it, also in
// the middle of a stream that nobody acknowledges.
func TestMessageIsABarrier(t *testing.T) {
	stream, _ := sample(t, pageserver.None)
	m := new(pagetest.Memory)
	r := pageserver.NewReceiver(bytes.NewReader(stream), m, pageserver.ReceiverOptions{})
	if _, err := r.Next(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := []pageserver.Run{run(1, 0x10, 3), run(7, 1<<52-1, 1)}
	if d := cmp.Diff(want, m.Runs()); d != "" {
		t.Error(d)
	}
}

func TestSenderRefusesWrongOrder(t *testing.T) {
	ctx := t.Context()
	var buf bytes.Buffer
	s := pageserver.NewSender(&buf, new(pagetest.Memory), pageserver.SenderOptions{})
	round := func(n uint32) error {
		_, err := s.Round(ctx, pageserver.RoundSpec{N: n})
		return err
	}
	if err := errors.Join(round(0), round(5)); err != nil {
		t.Fatal(err)
	}
	for _, n := range []uint32{0, 4, 5} {
		if round(n) == nil {
			t.Errorf("round %d after round 5 was accepted", n)
		}
	}
	if err := errors.Join(round(6), s.Close(ctx)); err != nil {
		t.Fatal(err)
	}
	if round(7) == nil || s.Message(ctx, 0, nil) == nil || s.Close(ctx) == nil {
		t.Error("something was accepted after the end")
	}
	if _, _, err := receiveAll(buf.Bytes()); err != io.EOF { //nolint:errorlint // the proper end is io.EOF itself
		t.Error(err)
	}
}

func TestRangesBeyondTheLastPageAreRefused(t *testing.T) {
	for _, r := range []pageserver.Run{run(0, 1<<52, 1), run(0, 1<<52-1, 2), run(0, 1<<63, 1<<60), run(0, 0, 1<<52+1)} {
		s := pageserver.NewSender(io.Discard, new(pagetest.Memory), pageserver.SenderOptions{})
		if _, err := s.Round(t.Context(), pageserver.RoundSpec{Runs: slices.Values([]pageserver.Run{r})}); err == nil {
			t.Errorf("%v was sent", r)
		}
	}
}
