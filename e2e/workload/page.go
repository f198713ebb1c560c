package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

const (
	pageSize = 4096
	wordSize = 8
)

// A pageID is unique in the program, so that no two pages have the same
// content unless both are zero.
type pageID uint64

// mix is the finaliser of splitmix64: every bit of the result depends on every
// bit of x.
func mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}

// fill writes the content of one generation of a page. Generation 0 has never
// been written: it is zero. Of the others about a fifth is zero, half is like
// a heap, with words that resemble each other, and the rest is noise. A page
// that is not zero begins with its own name.
func fill(page []byte, id pageID, generation uint32) {
	seed := mix(uint64(id)<<32 ^ uint64(generation))
	kind := seed % 16
	if generation == 0 || kind < 3 {
		clear(page)
		return
	}
	binary.LittleEndian.PutUint64(page, uint64(id))
	binary.LittleEndian.PutUint64(page[wordSize:], uint64(generation))
	for at := 2 * wordSize; at < pageSize; at += wordSize {
		seed += 0x9e3779b97f4a7c15
		word := mix(seed)
		if kind < 11 {
			word = heapWord(word)
		}
		binary.LittleEndian.PutUint64(page[at:], word)
	}
}

// heapWord makes of noise what a heap is full of: zeros, small numbers,
// pointers to somewhere near.
func heapWord(noise uint64) uint64 {
	switch noise % 4 {
	case 0:
		return 0
	case 1:
		return noise >> 56
	default:
		return 0x7f00_0000_0000 | noise>>40&0xffff<<4
	}
}

// check says what is wrong with a page, or nil. scratch is a page to work in.
func check(page, scratch []byte, id pageID, generation uint32) error {
	fill(scratch, id, generation)
	if bytes.Equal(page, scratch) {
		return nil
	}
	at := 0
	for page[at] == scratch[at] {
		at++
	}
	wrong := 0
	for i := range page {
		if page[i] != scratch[i] {
			wrong++
		}
	}
	return fmt.Errorf("page %#x, generation %d: %d bytes are wrong, the first at %d: %#02x instead of %#02x (it looks like %s)",
		uint64(id), generation, wrong, at, page[at], scratch[at], looksLike(page))
}

// looksLike guesses what a page holds that is not what it should.
func looksLike(page []byte) string {
	id := pageID(binary.LittleEndian.Uint64(page))
	generation := binary.LittleEndian.Uint64(page[wordSize:])
	if generation < 1<<32 {
		other := make([]byte, pageSize)
		fill(other, id, uint32(generation))
		if bytes.Equal(page, other) {
			if generation == 0 {
				return "zeros"
			}
			return fmt.Sprintf("generation %d of page %#x", generation, uint64(id))
		}
	}
	return "nothing known"
}
