package pagetest

import (
	"encoding/binary"
	"math/rand/v2"

	"github.com/pagurus-project/pagurus/pageserver"
)

// Random fills b with what no codec compresses.
func Random(rng *rand.Rand, b []byte) {
	for ; len(b) >= 8; b = b[8:] {
		binary.LittleEndian.PutUint64(b, rng.Uint64())
	}
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
}

// Heap fills b, page by page, with what heaps of programs consist of: objects
// of pointers, small numbers and padding, text, packed bytes, and pages never
// written. The mixture is made up; real heaps compress by about the same
// factors, two to four with a fast codec.
func Heap(rng *rand.Rand, b []byte) {
	for len(b) > 0 {
		n := min(len(b), pageserver.PageSize)
		heapPage(rng, b[:n])
		b = b[n:]
	}
}

func heapPage(rng *rand.Rand, p []byte) {
	switch kind := rng.IntN(20); {
	case kind < 3: // never written
		clear(p)
	case kind < 12:
		objects(rng, p)
	case kind < 17:
		text(rng, p)
	default: // media, hashes, keys
		Random(rng, p)
	}
}

// objects fills p with small structures: a type word, pointers into one arena,
// lengths, padding.
func objects(rng *rand.Rand, p []byte) {
	arena := 0x7f00_0000_0000 + uint64(rng.Uint32N(64))<<20
	class := 0x55d0_0000_0000 + uint64(rng.Uint32N(256))<<6
	for i := 0; len(p) >= 8; i++ {
		var word uint64
		switch i % 6 {
		case 0:
			word = class
		case 1, 2:
			word = arena + uint64(rng.Uint32N(1<<20))&^15
		case 3:
			word = uint64(rng.Uint32N(200))
		case 4:
			word = uint64(rng.Uint32()) << 16
		}
		binary.LittleEndian.PutUint64(p, word)
		p = p[8:]
	}
}

var words = [...]string{
	"error", "user", "session", "GET /api/v1/", "content-type", "application/json", "id", "name", "value",
	"timestamp", "2026-01-", "null", "true", "the", "of", "and", "a", "in", "migration", "process", "page",
	"http://", "localhost", "index", "key", "status", "created_at", "SELECT", "FROM", "WHERE", "\n", "\": \"",
}

func text(rng *rand.Rand, p []byte) {
	for len(p) > 0 {
		n := copy(p, words[rng.IntN(len(words))])
		if n < len(p) {
			p[n] = ' '
			n++
		}
		p = p[n:]
		if rng.IntN(4) == 0 && len(p) >= 4 {
			binary.LittleEndian.PutUint32(p, '0'*0x01010101+rng.Uint32()&0x07070707)
			p = p[4:]
		}
	}
}
