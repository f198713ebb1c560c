package pageserver

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"runtime"
	"slices"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
)

// Digest sums up which pages have which content. It does not depend on the
// order of the pages nor on how they were split into runs, and the digest of
// two disjoint sets of pages is the sum of theirs. It finds mistakes, not
// forgeries: the connection is what keeps others out.
type Digest uint64

var (
	zeroPage    [PageSize]byte
	zeroPageCRC = crc32.Checksum(zeroPage[:], castagnoli)
)

// isZero is a comparison with a page of zeros, for which the runtime has vector
// code that stops at the first difference.
func isZero(page []byte) bool { return bytes.Equal(page, zeroPage[:]) }

// pageDigest is one page's part in a digest. crc is that of its content.
func pageDigest(space SpaceID, page PageNo, crc uint32) Digest {
	return Digest(mix(mix(uint64(space)<<32|uint64(crc)) ^ uint64(page)))
}

func zeroDigest(space SpaceID, ranges []Range) Digest {
	var d Digest
	for _, r := range ranges {
		for page := range r.each {
			d += pageDigest(space, page, zeroPageCRC)
		}
	}
	return d
}

// dropDigest counts dropped pages under the complements of their numbers, which
// no page has.
func dropDigest(space SpaceID, ranges []Range) Digest {
	var d Digest
	for _, r := range ranges {
		for page := range r.each {
			d += pageDigest(space, ^page, zeroPageCRC)
		}
	}
	return d
}

// sumPages appends the checksums of the pages of ranges, as a block's checksum
// wants them, and returns their digest.
func sumPages(sums []byte, space SpaceID, ranges []Range, content []byte) ([]byte, Digest) {
	var d Digest
	for _, r := range ranges {
		for page := range r.each {
			crc := crc32.Checksum(content[:PageSize], castagnoli)
			content = content[PageSize:]
			sums = binary.LittleEndian.AppendUint32(sums, crc)
			d += pageDigest(space, page, crc)
		}
	}
	return sums, d
}

// mix is the finalizer of SplitMix64 (Steele, Lea, Flood: Fast splittable
// pseudorandom number generators, 2014), a bijection each of whose output bits
// depends on all input bits.
func mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}

// DigestOf reads the pages of runs and returns their digest. A page that is
// not there counts as zero content.
func DigestOf(ctx context.Context, src Source, runs []Run) (Digest, error) {
	var d Digest
	parts, err := DigestChunks(ctx, src, runs, 1<<20)
	for _, part := range parts {
		d += part
	}
	return d, err
}

// DigestChunks reads the pages of runs and returns one digest for every chunk
// pages (fewer in the last), counted through all runs in their order. A page that
// is not there counts as zero content. Two sides that did so over the same
// runs learn from [Differing] where their pages differ.
func DigestChunks(ctx context.Context, src Source, runs []Run, chunk uint64) ([]Digest, error) {
	var total uint64
	for _, run := range runs {
		if !run.valid() {
			return nil, fmt.Errorf("summing up %v: there is no such range of pages", run)
		}
		total += run.Pages
	}
	sums := make([]atomic.Uint64, (total+chunk-1)/chunk)
	// Each worker walks all batches, which costs next to nothing, and reads
	// those that fall to it.
	workers := runtime.GOMAXPROCS(0)
	group, ctx := errgroup.WithContext(ctx)
	for worker := range workers {
		group.Go(func() error {
			r := digester{src: src, chunk: chunk, sums: sums, buf: make([]byte, blockBytes)}
			var turn int
			var first uint64
			for space, ranges := range batches(slices.Values(runs), blockPages) {
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				if turn%workers == worker {
					if err := r.add(space, ranges, first); err != nil {
						return err
					}
				}
				turn++
				first += countPages(ranges)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	digests := make([]Digest, len(sums))
	for i := range sums {
		digests[i] = Digest(sums[i].Load())
	}
	return digests, nil
}

// digester is one worker of DigestChunks.
type digester struct {
	src   Source
	chunk uint64
	sums  []atomic.Uint64 // shared with the other workers
	buf   []byte
	gone  [blockPages]bool
}

// add adds the pages of ranges, the first of which is the first'th of all.
func (g *digester) add(space SpaceID, ranges []Range, first uint64) error {
	gone := g.gone[:countPages(ranges)]
	content := g.buf[:len(gone)*PageSize]
	if err := readPages(g.src, space, ranges, content, gone); err != nil {
		return err
	}
	i := 0
	for _, r := range ranges {
		for page := range r.each {
			crc := zeroPageCRC
			if !gone[i] {
				crc = crc32.Checksum(content[i*PageSize:(i+1)*PageSize], castagnoli)
			}
			g.sums[(first+uint64(i))/g.chunk].Add(uint64(pageDigest(space, page, crc)))
			i++
		}
	}
	return nil
}

// Differing returns the runs of pages whose digests differ in a and b, which
// both come from DigestChunks over runs with this chunk.
func Differing(runs []Run, chunk uint64, a, b []Digest) ([]Run, error) {
	var differ []Run
	var first uint64
	for _, run := range runs {
		for run.Pages > 0 {
			i := first / chunk
			if i >= uint64(len(a)) || i >= uint64(len(b)) {
				return nil, fmt.Errorf("comparing %d digests with %d: there are pages for more", len(a), len(b))
			}
			n := min(run.Pages, chunk-first%chunk)
			if a[i] != b[i] {
				differ = appendRun(differ, Run{run.Space, Range{run.First, n}})
			}
			first += n
			run.First += PageNo(n)
			run.Pages -= n
		}
	}
	return differ, nil
}
