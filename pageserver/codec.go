package pageserver

import (
	"errors"
	"fmt"
	"sync"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
)

// Codec is how the content of a block is compressed. The numbers are part of
// the stream's format.
type Codec uint8

const (
	Auto Codec = 0 // chosen block by block, by measurement; never on the wire
	None Codec = 1
	S2   Codec = 2
	Zstd Codec = 3

	codecs = 4 // how many values there are, Auto included
)

// onWire reports whether c may stand in a block's header.
func (c Codec) onWire() bool { return c >= None && c <= Zstd }

func (c Codec) String() string {
	names := [codecs]string{"auto", "none", "s2", "zstd"}
	if int(c) < len(names) {
		return names[c]
	}
	return fmt.Sprintf("codec %d", uint8(c))
}

// ParseCodec is the inverse of String.
func ParseCodec(s string) (Codec, error) {
	for c := range Codec(codecs) {
		if c.String() == s {
			return c, nil
		}
	}
	return 0, fmt.Errorf("compression %q is none of auto, none, s2, zstd", s)
}

// bound returns how long dst must be for compress to write n bytes of any content.
func (c Codec) bound(n int) int {
	switch c {
	case S2:
		return s2.MaxEncodedLen(n)
	case Zstd:
		return n + n/128 + 64 // three bytes for each 128 KiB that do not shrink, and the frame
	default:
		return 0
	}
}

// compressor is what the workers of a sender compress with. It makes what a
// codec needs when the codec is first used: a zstd coder holds megabytes.
type compressor struct {
	zstd func() (*zstd.Encoder, error)
}

func newCompressor(workers int) compressor {
	return compressor{sync.OnceValues(func() (*zstd.Encoder, error) {
		return zstd.NewWriter(nil, // EncodeAll needs no writer and starts no goroutine
			zstd.WithEncoderLevel(zstd.SpeedFastest),
			zstd.WithEncoderConcurrency(workers), // coders in its pool
			zstd.WithWindowSize(maxBlockBytes),
			zstd.WithEncoderCRC(false)) // frames carry our own
	})}
}

// compress compresses src into dst, which is at least codec.bound(len(src))
// long and does not overlap it, and returns the part of dst that it used.
func (c compressor) compress(codec Codec, dst, src []byte) ([]byte, error) {
	switch codec {
	case S2:
		return s2.Encode(dst, src), nil
	case Zstd:
		enc, err := c.zstd()
		if err != nil {
			return nil, fmt.Errorf("making a zstd encoder: %w", err)
		}
		return enc.EncodeAll(src, dst[:0]), nil
	default:
		return nil, fmt.Errorf("compressing by %v: %w", codec, errors.ErrUnsupported)
	}
}

// decompressor is the compressor's other side.
type decompressor struct {
	zstd func() (*zstd.Decoder, error)
}

func newDecompressor(workers int) decompressor {
	return decompressor{sync.OnceValues(func() (*zstd.Decoder, error) {
		return zstd.NewReader(nil, // DecodeAll needs no reader and starts no goroutine
			zstd.WithDecoderConcurrency(workers),
			zstd.WithDecoderMaxMemory(maxBlockBytes),
			zstd.WithDecodeAllCapLimit(true))
	})}
}

// decompress fills dst with what src expands to, which must be exactly as
// much. Whatever src says, no more memory than that is used for it.
func (d decompressor) decompress(codec Codec, dst, src []byte) error {
	switch codec {
	case S2:
		n, err := s2.DecodedLen(src)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
		if n != len(dst) {
			return fmt.Errorf("%w: s2 data of %d bytes for %d bytes of pages", ErrCorrupt, n, len(dst))
		}
		if _, err := s2.Decode(dst, src); err != nil {
			return fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
		return nil
	case Zstd:
		dec, err := d.zstd()
		if err != nil {
			return fmt.Errorf("making a zstd decoder: %w", err)
		}
		out, err := dec.DecodeAll(src, dst[:0:len(dst)])
		if err != nil {
			return fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
		if len(out) != len(dst) {
			return fmt.Errorf("%w: zstd data of %d bytes for %d bytes of pages", ErrCorrupt, len(out), len(dst))
		}
		return nil
	default:
		return fmt.Errorf("decompressing by %v: %w", codec, errors.ErrUnsupported)
	}
}
