package pageserver

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// ErrCorrupt says that a stream is not what its sender wrote, or that what was
// placed is not what was sent.
var ErrCorrupt = errors.New("page stream is corrupt")

// MaxMessageBytes bounds the payload of a message.
const MaxMessageBytes = 256 << 20

type frameType uint8

// The table in doc.go says what is in them.
const (
	frameBlock      frameType = 1
	frameZero       frameType = 2
	frameDrop       frameType = 3
	frameRoundBegin frameType = 4
	frameRoundEnd   frameType = 5
	frameMessage    frameType = 6
	frameEnd        frameType = 7
)

func (t frameType) String() string {
	names := [...]string{"frame 0", "block", "zero", "drop", "round begin", "round end", "message", "end of stream"}
	if int(t) < len(names) {
		return names[t]
	}
	return fmt.Sprintf("frame %d", uint8(t))
}

const (
	magic         = "\x89PAGURUS"
	version       = 1
	prefaceBytes  = 16
	headerBytes   = 20
	rangeBytes    = 8
	roundEndBytes = 32
)

// castagnoli is computed by an instruction of its own on amd64 and arm64.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func appendPreface(b []byte) []byte {
	start := len(b)
	b = append(b, magic...)
	b = binary.LittleEndian.AppendUint16(b, version)
	b = binary.LittleEndian.AppendUint16(b, 0)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

func checkPreface(b []byte) error {
	if string(b[:8]) != magic {
		return fmt.Errorf("%w: it begins with % x", ErrCorrupt, b[:8])
	}
	if binary.LittleEndian.Uint32(b[12:]) != crc32.Checksum(b[:12], castagnoli) {
		return fmt.Errorf("%w: checksum of the preface", ErrCorrupt)
	}
	if v := binary.LittleEndian.Uint16(b[8:]); v != version {
		return fmt.Errorf("page stream version %d: %w (this is version %d)", v, errors.ErrUnsupported, version)
	}
	if f := binary.LittleEndian.Uint16(b[10:]); f != 0 {
		return fmt.Errorf("page stream flags %#x: %w", f, errors.ErrUnsupported)
	}
	return nil
}

// header is a frame's fixed part.
type header struct {
	typ     frameType
	code    uint8  // codec or kind
	ranges  uint16 // entries
	number  uint32 // space or round
	payload uint32 // bytes
	body    uint32 // checksum
}

func headBytes(ranges []Range) int { return headerBytes + rangeBytes*len(ranges) }

// appendHead appends a header and its range table. The checksum of the body
// covers the range table and then tail.
func appendHead(b []byte, h header, ranges []Range, tail []byte) []byte {
	start := len(b)
	b = append(b, make([]byte, headerBytes)...)
	for _, r := range ranges {
		b = binary.LittleEndian.AppendUint64(b, uint64(r.First)*PageSize|(r.Pages-1))
	}
	body := bodyChecksum(b[start+headerBytes:], tail)
	f := b[start:]
	f[0] = byte(h.typ)
	f[1] = h.code
	binary.LittleEndian.PutUint16(f[2:], uint16(len(ranges)))
	binary.LittleEndian.PutUint32(f[4:], h.number)
	binary.LittleEndian.PutUint32(f[8:], h.payload)
	binary.LittleEndian.PutUint32(f[12:], body)
	binary.LittleEndian.PutUint32(f[16:], crc32.Checksum(f[:16], castagnoli))
	return b
}

func bodyChecksum(table, tail []byte) uint32 {
	return crc32.Update(crc32.Checksum(table, castagnoli), castagnoli, tail)
}

// parseHeader returns a header all of whose lengths are within their bounds.
func parseHeader(b []byte) (header, error) {
	h := header{
		typ:     frameType(b[0]),
		code:    b[1],
		ranges:  binary.LittleEndian.Uint16(b[2:]),
		number:  binary.LittleEndian.Uint32(b[4:]),
		payload: binary.LittleEndian.Uint32(b[8:]),
		body:    binary.LittleEndian.Uint32(b[12:]),
	}
	if binary.LittleEndian.Uint32(b[16:]) != crc32.Checksum(b[:16], castagnoli) {
		return header{}, fmt.Errorf("%w: checksum of a header", ErrCorrupt)
	}
	var ranges, number, code bool // may be other than zero
	var maxPayload uint32
	switch h.typ {
	case frameBlock:
		ranges, number, code, maxPayload = true, true, true, maxBlockBytes
		if !Codec(h.code).onWire() {
			return header{}, fmt.Errorf("%w: codec %d", ErrCorrupt, h.code)
		}
	case frameZero, frameDrop:
		ranges, number = true, true
	case frameRoundBegin:
		number = true
	case frameRoundEnd:
		number, maxPayload = true, roundEndBytes
	case frameMessage:
		code, maxPayload = true, MaxMessageBytes
	case frameEnd:
	default:
		return header{}, fmt.Errorf("%w: unknown %v", ErrCorrupt, h.typ)
	}
	if ranges != (h.ranges > 0) || h.ranges > maxFrameRanges || h.payload > maxPayload ||
		!number && h.number != 0 || !code && h.code != 0 {
		return header{}, fmt.Errorf("%w: %v with code %d, number %d, %d ranges and %d bytes",
			ErrCorrupt, h.typ, h.code, h.number, h.ranges, h.payload)
	}
	return h, nil
}

// parseRanges appends the entries of a range table to ranges.
func parseRanges(ranges []Range, b []byte) ([]Range, error) {
	for ; len(b) > 0; b = b[rangeBytes:] {
		v := binary.LittleEndian.Uint64(b)
		r := Range{PageNo(v / PageSize), v%PageSize + 1}
		if !r.valid() {
			return nil, fmt.Errorf("%w: range %v", ErrCorrupt, r)
		}
		ranges = append(ranges, r)
	}
	return ranges, nil
}

// roundTotals is what the two sides of a round compare.
type roundTotals struct {
	pages, zero, dropped uint64
	digest               Digest
}

func (t *roundTotals) add(u roundTotals) {
	t.pages += u.pages
	t.zero += u.zero
	t.dropped += u.dropped
	t.digest += u.digest
}

func (t roundTotals) counters() Counters {
	return Counters{
		Pages:        t.pages + t.zero,
		ZeroPages:    t.zero,
		DroppedPages: t.dropped,
		Bytes:        (t.pages + t.zero) * PageSize,
	}
}

func (t roundTotals) append(b []byte) []byte {
	for _, v := range [...]uint64{t.pages, t.zero, t.dropped, uint64(t.digest)} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return b
}

func parseTotals(b []byte) (roundTotals, error) {
	if len(b) != roundEndBytes {
		return roundTotals{}, fmt.Errorf("%w: round end of %d bytes", ErrCorrupt, len(b))
	}
	return roundTotals{
		pages:   binary.LittleEndian.Uint64(b),
		zero:    binary.LittleEndian.Uint64(b[8:]),
		dropped: binary.LittleEndian.Uint64(b[16:]),
		digest:  Digest(binary.LittleEndian.Uint64(b[24:])),
	}, nil
}

func (t roundTotals) String() string {
	return fmt.Sprintf("%d pages, %d zero pages, %d dropped pages, digest %016x", t.pages, t.zero, t.dropped, uint64(t.digest))
}
