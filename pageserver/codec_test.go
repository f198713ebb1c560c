package pageserver

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
	"pgregory.net/rapid"
)

func TestCodecRoundTrip(t *testing.T) {
	c, d := newCompressor(1), newDecompressor(1)
	rapid.Check(t, func(t *rapid.T) {
		codec := rapid.SampledFrom([]Codec{S2, Zstd}).Draw(t, "codec")
		pages := rapid.IntRange(1, blockPages).Draw(t, "pages")
		alphabet := rapid.IntRange(1, 256).Draw(t, "alphabet") // how compressible
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		src := make([]byte, pages*PageSize)
		for i := range src {
			src[i] = byte(rng.IntN(alphabet))
		}
		packed, err := c.compress(codec, make([]byte, codec.bound(len(src))), src)
		if err != nil {
			t.Fatal(err)
		}
		if len(packed) > codec.bound(len(src)) {
			t.Fatalf("%d bytes became %d, more than the bound", len(src), len(packed))
		}
		dst := make([]byte, len(src))
		if err := d.decompress(codec, dst, packed); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(src, dst) {
			t.Fatal("content differs")
		}
	})
}

// What expands to more or less than the pages of its block is refused, without
// memory being spent on it.
func TestDecompressRefusesOtherSizes(t *testing.T) {
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	bomb := make([]byte, 64<<20)
	var unsized bytes.Buffer // a frame that does not say its size
	streaming, err := zstd.NewWriter(&unsized)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := streaming.Write(bomb); err != nil {
		t.Fatal(err)
	}
	if err := streaming.Close(); err != nil {
		t.Fatal(err)
	}
	small := make([]byte, PageSize)
	for _, test := range []struct {
		name  string
		codec Codec
		data  []byte
	}{
		{"zstd bomb", Zstd, enc.EncodeAll(bomb, nil)},
		{"zstd bomb without a size", Zstd, unsized.Bytes()},
		{"zstd, two frames", Zstd, enc.EncodeAll(small, enc.EncodeAll(small, nil))},
		{"zstd, too little", Zstd, enc.EncodeAll(small[1:], nil)},
		{"zstd, nothing", Zstd, nil},
		{"zstd, noise", Zstd, []byte("noise noise noise")},
		{"s2 bomb", S2, s2.Encode(nil, bomb)},
		{"s2, a byte more", S2, s2.Encode(nil, bomb[:PageSize+1])},
		{"s2, too little", S2, s2.Encode(nil, small[1:])},
		{"s2, nothing", S2, nil},
		{"s2, size alone", S2, []byte{0x80, 0x20}},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := newDecompressor(1)
			dst := make([]byte, PageSize)
			// The decoder's own tables do not count.
			_ = d.decompress(test.codec, dst, enc.EncodeAll(small, nil))
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			err := d.decompress(test.codec, dst, test.data)
			runtime.ReadMemStats(&after)
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("error %v, want ErrCorrupt", err)
			}
			if spent := after.TotalAlloc - before.TotalAlloc; spent > 4<<20 {
				t.Errorf("spent %d bytes of memory", spent)
			}
		})
	}
}

func TestParseCodec(t *testing.T) {
	for _, c := range []Codec{Auto, None, S2, Zstd} {
		if got, err := ParseCodec(c.String()); got != c || err != nil {
			t.Errorf("%v: %v, %v", c, got, err)
		}
	}
	if _, err := ParseCodec("lz4"); err == nil {
		t.Error("lz4 is accepted")
	}
}
