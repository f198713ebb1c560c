package pageserver_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pagurus-project/pagurus/pageserver"
	"github.com/pagurus-project/pagurus/pageserver/pagetest"
)

func TestBandwidthLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit = 1 << 20
		s := pageserver.NewSender(io.Discard, new(pattern), pageserver.SenderOptions{LimitBytes: limit, Codec: pageserver.None})
		spec := pageserver.RoundSpec{Runs: slices.Values([]pageserver.Run{run(0, 0, 10*256)})} // 10 MiB
		stats, err := s.Round(t.Context(), spec)
		if err != nil {
			t.Fatal(err)
		}
		// Ten seconds of bytes, less the burst that the limiter starts with, plus the heads.
		if d := stats.Duration; d < 9900*time.Millisecond || d > 10100*time.Millisecond {
			t.Errorf("%d bytes took %v at %d bytes a second", stats.WireBytes, d, limit)
		}
		if err := s.Message(t.Context(), 0, make([]byte, 5<<20)); err != nil {
			t.Fatal(err)
		}
		spec.N, spec.Urgent = 1, true
		start := time.Now()
		if stats, err = s.Round(t.Context(), spec); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(start); d != 0 {
			t.Errorf("unlimited round of %d bytes took %v", stats.WireBytes, d)
		}
	})
}

// What Auto comes to on links of different speed. Under synctest processors
// cost no time, so the link alone decides and the outcome is always the same;
// choose_test.go has the cases where processors count.
func TestAutoFollowsTheLink(t *testing.T) {
	const pages = 1 << 14 // 64 MiB
	for _, test := range []struct {
		name    string
		link    pagetest.Link
		limit   uint64
		content func(*rand.Rand, []byte)
		want    pageserver.Codec
	}{
		{"slow link", pagetest.Link{BytesPerSecond: 10e6}, 0, pagetest.Heap, pageserver.Zstd},
		{"distant link", pagetest.Link{BytesPerSecond: 100e6, Delay: 20 * time.Millisecond, BufferBytes: 4 << 20}, 0, pagetest.Heap, pageserver.Zstd},
		{"fast link", pagetest.Link{}, 0, pagetest.Heap, pageserver.None},
		{"fast link under a limit", pagetest.Link{}, 10e6, pagetest.Heap, pageserver.Zstd},
		{"slow link, nothing to gain", pagetest.Link{BytesPerSecond: 10e6}, 0, pagetest.Random, pageserver.None},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tile := make([]byte, 4<<20)
				test.content(newRand(1), tile)
				src := flat(bytes.Repeat(tile, pages*pageserver.PageSize/len(tile)))
				dst := make(flat, len(src))
				a, b := pagetest.Pair(test.link, pagetest.Link{})
				defer a.Close()
				done := make(chan error)
				go func() {
					_, err := pageserver.NewReceiver(b, dst, pageserver.ReceiverOptions{}).Next(context.Background())
					b.Close()
					done <- err
				}()
				s := pageserver.NewSender(a, src, pageserver.SenderOptions{LimitBytes: test.limit})
				stats, err := s.Round(t.Context(), pageserver.RoundSpec{Runs: slices.Values([]pageserver.Run{run(0, 0, pages)})})
				if err := errors.Join(err, s.Close(t.Context())); err != nil {
					t.Fatal(err)
				}
				if err := <-done; err != io.EOF { //nolint:errorlint // the proper end is io.EOF itself
					t.Fatal(err)
				}
				// The first windows go into finding out; single pages of a heap may not shrink.
				if blocks := uint64(pages / 64); stats.Blocks[test.want] < blocks*6/10 {
					t.Errorf("blocks by codec: %v, want most of %d by %v", stats.Blocks, blocks, test.want)
				}
				if !bytes.Equal(src, dst) {
					t.Error("content differs")
				}
			})
		})
	}
}
