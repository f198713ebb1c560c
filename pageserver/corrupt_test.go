package pageserver_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"runtime"
	"strings"
	"testing"

	"github.com/klauspost/compress/s2"

	"github.com/pagurus-project/pagurus/pageserver"
	"github.com/pagurus-project/pagurus/pageserver/pagetest"
)

// The frames here are built and taken apart from the table in the package's
// documentation, not by its code.

const (
	prefaceBytes = 16
	headerBytes  = 20
)

func crc(parts ...[]byte) uint32 {
	return crc32.Checksum(bytes.Join(parts, nil), crc32.MakeTable(crc32.Castagnoli))
}

func preface(version, flags uint16) []byte {
	b := []byte("\x89PAGURUS")
	b = binary.LittleEndian.AppendUint16(b, version)
	b = binary.LittleEndian.AppendUint16(b, flags)
	return binary.LittleEndian.AppendUint32(b, crc(b))
}

// frame is a frame as it stands on the wire; bytes fills in the rest.
type frame struct {
	typ, code byte
	number    uint32
	ranges    []uint64 // table entries
	payload   []byte
	content   []byte // of a block's pages, where it is not the payload
	promise   uint32 // length of the payload, where it is not that
}

func (f frame) bytes() []byte {
	var table []byte
	for _, r := range f.ranges {
		table = binary.LittleEndian.AppendUint64(table, r)
	}
	body := crc(table, f.payload)
	if f.typ == 1 {
		content := f.content
		if content == nil {
			content = f.payload
		}
		var sums []byte
		for ; len(content) >= pageserver.PageSize; content = content[pageserver.PageSize:] {
			sums = binary.LittleEndian.AppendUint32(sums, crc(content[:pageserver.PageSize]))
		}
		body = crc(table, sums)
	}
	length := f.promise
	if length == 0 {
		length = uint32(len(f.payload))
	}
	b := []byte{f.typ, f.code}
	b = binary.LittleEndian.AppendUint16(b, uint16(len(f.ranges)))
	b = binary.LittleEndian.AppendUint32(b, f.number)
	b = binary.LittleEndian.AppendUint32(b, length)
	b = binary.LittleEndian.AppendUint32(b, body)
	b = binary.LittleEndian.AppendUint32(b, crc(b))
	return bytes.Join([][]byte{b, table, f.payload}, nil)
}

func streamOf(frames ...frame) []byte {
	stream := preface(1, 0)
	for _, f := range frames {
		stream = append(stream, f.bytes()...)
	}
	return stream
}

// split cuts a good stream into preface and frames.
func split(stream []byte) [][]byte {
	parts := [][]byte{stream[:prefaceBytes]}
	for rest := stream[prefaceBytes:]; len(rest) > 0; {
		n := headerBytes + 8*int(binary.LittleEndian.Uint16(rest[2:])) + int(binary.LittleEndian.Uint32(rest[8:]))
		parts = append(parts, rest[:n])
		rest = rest[n:]
	}
	return parts
}

func TestFrameTableIsRight(t *testing.T) {
	page := make([]byte, pageserver.PageSize)
	copy(page, "content")
	m := new(pagetest.Memory)
	m.Set(5, 0x42, page)
	var buf bytes.Buffer
	s := pageserver.NewSender(&buf, m, pageserver.SenderOptions{Codec: pageserver.None})
	_, err := s.Round(t.Context(), pageserver.RoundSpec{N: 3, Runs: func(yield func(pageserver.Run) bool) { yield(run(5, 0x42, 1)) }})
	if err := errors.Join(err, s.Message(t.Context(), 8, []byte("hello")), s.Close(t.Context())); err != nil {
		t.Fatal(err)
	}
	parts := split(buf.Bytes())
	totals := parts[3] // the digest in it has no definition but the code
	want := streamOf(
		frame{typ: 4, number: 3},
		frame{typ: 1, code: 1, number: 5, ranges: []uint64{0x42000}, payload: page},
		frame{typ: 5, number: 3, payload: totals[headerBytes:]},
		frame{typ: 6, code: 8, payload: []byte("hello")},
		frame{typ: 7},
	)
	if !bytes.Equal(buf.Bytes(), want) {
		t.Errorf("written:\n% x\nby the table:\n% x", buf.Bytes(), want)
	}
}

func TestTruncationIsNoticed(t *testing.T) {
	for _, codec := range allCodecs {
		stream, _ := sample(t, codec)
		for n := range stream {
			if _, _, err := receiveAll(stream[:n]); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatalf("%v: cut after %d of %d bytes: %v", codec, n, len(stream), err)
			}
		}
	}
}

// A wrong byte anywhere is an error, or what it changed was without meaning (in
// a codec's data) and everything arrives as it was sent.
func TestCorruptionIsNoticed(t *testing.T) {
	for _, codec := range allCodecs {
		stream, want := sample(t, codec)
		for i := range stream {
			for _, mask := range [...]byte{1 << (i % 8), 0xff} {
				damaged := bytes.Clone(stream)
				damaged[i] ^= mask
				got, _, err := receiveAll(damaged)
				if errors.Is(err, pageserver.ErrCorrupt) {
					continue
				}
				if codec == pageserver.None || err != io.EOF { //nolint:errorlint // the proper end is io.EOF itself
					t.Fatalf("%v: byte %d changed by %#x: %v", codec, i, mask, err)
				}
				if d := want.Differs(got); d != "" {
					t.Fatalf("%v: byte %d changed by %#x: %s", codec, i, mask, d)
				}
			}
		}
	}
}

// Frames that are each in order, but not where they belong.
func TestLostAndRepeatedFramesAreNoticed(t *testing.T) {
	stream, _ := sample(t, pageserver.None)
	parts := split(stream)
	for i := 1; i < len(parts); i++ {
		name := fmt.Sprintf("frame %d of type %d", i, parts[i][0])
		if parts[i][0] == 6 {
			continue // messages are the caller's: it knows which ones it expects
		}
		without := bytes.Join(append(append([][]byte{}, parts[:i]...), parts[i+1:]...), nil)
		if _, _, err := receiveAll(without); !errors.Is(err, pageserver.ErrCorrupt) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%s left out: %v", name, err)
		}
		if parts[i][0] == 7 {
			continue // nothing is read after the end
		}
		twice := bytes.Join(append(append([][]byte{}, parts[:i+1]...), parts[i:]...), nil)
		if _, _, err := receiveAll(twice); !errors.Is(err, pageserver.ErrCorrupt) {
			t.Errorf("%s twice: %v", name, err)
		}
	}
}

func TestMalformedStreamsAreRefused(t *testing.T) {
	page := make([]byte, pageserver.PageSize)
	begin, end := frame{typ: 4, number: 1}, frame{typ: 5, number: 1, payload: make([]byte, 32)}
	inRound := func(f frame) []byte { return streamOf(begin, f, end, frame{typ: 7}) }
	many := make([]uint64, 257)
	bad := preface(1, 0)
	bad[3] = 'X'
	for _, test := range []struct {
		name   string
		stream []byte
		want   error
		text   string
	}{
		{"other magic", bad, pageserver.ErrCorrupt, "begins with"},
		{"newer version", preface(2, 0), errors.ErrUnsupported, "version 2"},
		{"unknown flag", preface(1, 4), errors.ErrUnsupported, "flags 0x4"},
		{"type 0", streamOf(frame{}), pageserver.ErrCorrupt, "unknown"},
		{"type 8", streamOf(frame{typ: 8}), pageserver.ErrCorrupt, "unknown"},
		{"block outside of a round", streamOf(frame{typ: 1, code: 1, ranges: []uint64{0}, payload: page}), pageserver.ErrCorrupt, "outside of a round"},
		{"zero outside of a round", streamOf(frame{typ: 2, ranges: []uint64{0}}), pageserver.ErrCorrupt, "outside of a round"},
		{"drop after a round", streamOf(begin, end, frame{typ: 3, ranges: []uint64{0}}), pageserver.ErrCorrupt, "outside of a round"},
		{"round in a round", streamOf(begin, frame{typ: 4, number: 2}), pageserver.ErrCorrupt, "begins after"},
		{"round again", streamOf(begin, end, begin), pageserver.ErrCorrupt, "begins after"},
		{"round 0 after 1", streamOf(begin, end, frame{typ: 4}), pageserver.ErrCorrupt, "begins after"},
		{"round begin with a payload", streamOf(frame{typ: 4, payload: page}), pageserver.ErrCorrupt, "4096 bytes"},
		{"end without a round", streamOf(end), pageserver.ErrCorrupt, "end of round"},
		{"end of another round", streamOf(begin, frame{typ: 5, number: 2, payload: make([]byte, 32)}), pageserver.ErrCorrupt, "end of round 2"},
		{"short round end", streamOf(begin, frame{typ: 5, number: 1, payload: page[:31]}), pageserver.ErrCorrupt, "31 bytes"},
		{"long round end", streamOf(begin, frame{typ: 5, number: 1, payload: page[:33]}), pageserver.ErrCorrupt, "33 bytes"},
		{"more placed than sent", inRound(frame{typ: 2, ranges: []uint64{0}}), pageserver.ErrCorrupt, "placed 0 pages, 1 zero pages"},
		{"stream ends in a round", streamOf(begin, frame{typ: 7}), pageserver.ErrCorrupt, "ends in round 1"},
		{"end with a number", streamOf(frame{typ: 7, number: 1}), pageserver.ErrCorrupt, "number 1"},
		{"message with a space", streamOf(frame{typ: 6, number: 1}), pageserver.ErrCorrupt, "number 1"},
		{"message with ranges", streamOf(frame{typ: 6, ranges: []uint64{0}}), pageserver.ErrCorrupt, "1 ranges"},
		{"message too long", streamOf(frame{typ: 6, promise: pageserver.MaxMessageBytes + 1}), pageserver.ErrCorrupt, "268435457 bytes"},
		{"codec 0", inRound(frame{typ: 1, code: 0, ranges: []uint64{0}, payload: page}), pageserver.ErrCorrupt, "codec 0"},
		{"codec 4", inRound(frame{typ: 1, code: 4, ranges: []uint64{0}, payload: page}), pageserver.ErrCorrupt, "codec 4"},
		{"zero with a codec", inRound(frame{typ: 2, code: 1, ranges: []uint64{0}}), pageserver.ErrCorrupt, "code 1"},
		{"zero with a payload", inRound(frame{typ: 2, ranges: []uint64{0}, payload: page}), pageserver.ErrCorrupt, "4096 bytes"},
		{"block without pages", inRound(frame{typ: 1, code: 1, payload: page}), pageserver.ErrCorrupt, "0 ranges"},
		{"too many ranges", inRound(frame{typ: 2, ranges: many}), pageserver.ErrCorrupt, "257 ranges"},
		{"block of too many bytes", inRound(frame{typ: 1, code: 1, ranges: []uint64{0}, promise: 1<<20 + 1}), pageserver.ErrCorrupt, "1048577 bytes"},
		{"block of too many pages", inRound(frame{typ: 1, code: 1, ranges: []uint64{256}, payload: page}), pageserver.ErrCorrupt, "257 pages"},
		{"beyond the last page", inRound(frame{typ: 2, ranges: []uint64{^uint64(0)}}), pageserver.ErrCorrupt, "+4096"},
		{"more pages than bytes", inRound(frame{typ: 1, code: 1, ranges: []uint64{1}, payload: page}), pageserver.ErrCorrupt, "4096 bytes for 2 pages"},
		{"compressed to another size", inRound(frame{typ: 1, code: 2, ranges: []uint64{1}, payload: s2.Encode(nil, page)}), pageserver.ErrCorrupt, "4096 bytes for 8192 bytes"},
		{"block of other content", inRound(frame{typ: 1, code: 1, number: 6, ranges: []uint64{0x42000}, payload: page, content: bytes.Repeat([]byte{1}, len(page))}), pageserver.ErrCorrupt, "space 6 0x42000+1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, _, err := receiveAll(test.stream)
			if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.text) {
				t.Errorf("error %q, want %q with %q", err, test.want, test.text)
			}
		})
	}
	// The frames are refused for their contents, not because the test builds them wrong.
	if _, _, err := receiveAll(streamOf(begin, end, frame{typ: 6, code: 1, payload: page}, frame{typ: 7})); err != io.EOF { //nolint:errorlint // the proper end is io.EOF itself
		t.Error(err)
	}
}

// A header's promise is not paid before the bytes are there.
func TestMemoryFollowsWhatHasArrived(t *testing.T) {
	stream := streamOf(frame{typ: 6, promise: pageserver.MaxMessageBytes, payload: make([]byte, 1000)})
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, _, err := receiveAll(stream)
	runtime.ReadMemStats(&after)
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error(err)
	}
	if spent := after.TotalAlloc - before.TotalAlloc; spent > 1<<20 {
		t.Errorf("%d bytes of memory for a message of which 1000 bytes came", spent)
	}
}

func TestDamageOnTheWayIsNoticed(t *testing.T) {
	a, b := pagetest.Pair(pagetest.Link{Damage: map[int64]byte{100_000: 0x10}}, pagetest.Link{})
	defer a.Close()
	m := new(pagetest.Memory)
	fill(m, newRand(1), run(0, 0, 100))
	received := make(chan error, 1)
	go func() {
		defer b.Close()
		_, err := pageserver.NewReceiver(b, new(pagetest.Memory), pageserver.ReceiverOptions{}).Next(context.Background())
		received <- err
	}()
	s := pageserver.NewSender(a, m, pageserver.SenderOptions{Codec: pageserver.None})
	// How far the sender gets before the other side hangs up is open.
	_, _ = s.Round(t.Context(), pageserver.RoundSpec{Runs: func(yield func(pageserver.Run) bool) { yield(run(0, 0, 100)) }})
	if err := <-received; !errors.Is(err, pageserver.ErrCorrupt) {
		t.Error(err)
	}
}
