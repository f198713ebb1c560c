package pageserver_test

import (
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/pagurus-project/pagurus/pageserver"
)

// bounded is a sink that checks what it is given.
type bounded struct{ t *testing.T }

func (b bounded) check(ranges []pageserver.Range) (pages uint64) {
	if len(ranges) == 0 || len(ranges) > 256 {
		b.t.Fatalf("%d ranges", len(ranges))
	}
	for _, r := range ranges {
		if r.Pages == 0 || r.Pages > 4096 || uint64(r.First)+r.Pages > 1<<52 {
			b.t.Fatalf("range %v", r)
		}
		pages += r.Pages
	}
	return pages
}

func (b bounded) Write(_ pageserver.SpaceID, ranges []pageserver.Range, buf []byte) error {
	if n := b.check(ranges); n > 256 || uint64(len(buf)) != n*pageserver.PageSize {
		b.t.Fatalf("%d pages in %d bytes", n, len(buf))
	}
	return nil
}

func (b bounded) Zero(_ pageserver.SpaceID, ranges []pageserver.Range) error {
	b.check(ranges)
	return nil
}

func (b bounded) Drop(_ pageserver.SpaceID, ranges []pageserver.Range) error {
	b.check(ranges)
	return nil
}

// FuzzReceiver feeds the receiver anything. A checksum stops nearly all of it,
// so the same bytes are fed once more with right checksums.
func FuzzReceiver(f *testing.F) {
	files, err := filepath.Glob("testdata/*.stream")
	if err != nil || len(files) == 0 {
		f.Fatal("no golden files", err)
	}
	for _, file := range files {
		golden, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(golden)
	}
	f.Add(streamOf(frame{typ: 4}, frame{typ: 2, ranges: []uint64{0xfff, 0x1000}}, frame{typ: 3, number: 9, ranges: []uint64{1 << 40}}))
	f.Add(streamOf(frame{typ: 6, code: 200, payload: []byte("message")}, frame{typ: 7}))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, stream := range [][]byte{data, reseal(data)} {
			r := pageserver.NewReceiver(&trickle{stream}, bounded{t}, pageserver.ReceiverOptions{Workers: 2})
			var err error
			for err == nil {
				_, err = r.Next(t.Context())
			}
			if err != io.EOF && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, pageserver.ErrCorrupt) && !errors.Is(err, errors.ErrUnsupported) { //nolint:errorlint // the proper end is io.EOF itself
				t.Fatalf("error of another kind: %v", err)
			}
		}
	})
}

// trickle reads in pieces.
type trickle struct{ rest []byte }

func (r *trickle) Read(b []byte) (int, error) {
	if len(r.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(b[:min(len(b), 1000)], r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// reseal puts right checksums wherever data can be taken for frames. That of a
// compressed block needs its content and is left as it is.
func reseal(data []byte) []byte {
	stream := append(preface(1, 0), data[min(prefaceBytes, len(data)):]...)
	for rest := stream[prefaceBytes:]; len(rest) >= headerBytes; {
		table := 8 * int(binary.LittleEndian.Uint16(rest[2:]))
		payload := int(binary.LittleEndian.Uint32(rest[8:]))
		if headerBytes+table+payload > len(rest) {
			payload = max(0, len(rest)-headerBytes-table)
			binary.LittleEndian.PutUint32(rest[8:], uint32(payload))
			if headerBytes+table+payload > len(rest) {
				break
			}
		}
		body := rest[headerBytes:][:table+payload]
		f := frame{typ: rest[0], code: rest[1], number: binary.LittleEndian.Uint32(rest[4:]), payload: body[table:]}
		for b := body[:table]; len(b) > 0; b = b[8:] {
			f.ranges = append(f.ranges, binary.LittleEndian.Uint64(b))
		}
		if f.typ != 1 || f.code == 1 {
			copy(rest, f.bytes())
		} else {
			binary.LittleEndian.PutUint32(rest[16:], crc(rest[:16]))
		}
		rest = rest[len(body)+headerBytes:]
	}
	return stream
}
