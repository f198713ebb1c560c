package source

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/migrate/resource"
)

// An object is memory that has an identity of its own (image.Object). The
// stores made through mappings of it are told by the dirty trackers. One that
// has ever had a descriptor can change without them: by write(2), or through a
// mapping that was made and undone between two rounds, of which not even the
// time of its last change tells. Such an object is compared, page by page, with
// what was sent; in the freeze that costs the reading of all of it.
type object struct {
	space  uint32
	file   *os.File
	hashes *hashes // of what was sent; nil: the trackers tell everything
	size   uint64  // that the destination was told last, in bytes
	sent   ranges  // offsets of what the destination holds
	seen   change  // when the content was last compared
}

// change is what changes when a file is written to.
type change struct {
	mtime, ctime, bytes int64
}

func newObject(o *resource.Object, trackersTell bool) *object {
	n := &object{space: o.Space, file: o.File}
	if o.Kind != image.ObjectSharedAnonymous || !trackersTell {
		n.hashes = newHashes()
	}
	return n
}

// survey finds the pages of the object that are to be sent, and those that the
// destination holds and that are not there any more. Written are the offsets
// where the trackers saw stores; size is what the destination takes for its size.
func (o *object) survey(ctx context.Context, written ranges, size uint64, final bool) (send, drop ranges, err error) {
	// Before anything is looked at: what changes meanwhile changes this again.
	now, err := o.lastChange()
	if err != nil {
		return nil, nil, err
	}
	o.size = size
	there, err := o.extents(size)
	if err != nil {
		return nil, nil, err
	}
	send = union(written.within(there), there.without(o.sent))
	drop = o.sent.without(there).within(ranges{{Start: 0, End: pageAlign(size)}})
	if o.hashes != nil && (final || now != o.seen) {
		other, err := o.compare(ctx, there.without(send))
		if err != nil {
			return nil, nil, err
		}
		send = union(send, other)
	}
	o.seen, o.sent = now, there
	return send, drop, nil
}

func (o *object) lastChange() (change, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(o.file.Fd()), &st); err != nil {
		return change{}, fmt.Errorf("looking at object %s: %w", o.file.Name(), err)
	}
	return change{st.Mtim.Nano(), st.Ctim.Nano(), st.Size}, nil
}

func pageAlign(n uint64) uint64 { return (n + image.PageSize - 1) &^ (image.PageSize - 1) }

// extents are the parts of the object that are not holes.
func (o *object) extents(size uint64) (ranges, error) {
	var found []image.AddressRange
	for at := int64(0); at < int64(size); {
		start, err := unix.Seek(int(o.file.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break
		}
		var end int64
		if err == nil {
			end, err = unix.Seek(int(o.file.Fd()), start, unix.SEEK_HOLE)
		}
		if errors.Is(err, unix.ENXIO) {
			break // it has shrunk since
		}
		if err != nil {
			return nil, fmt.Errorf("looking for data in object %s: %w", o.file.Name(), err)
		}
		found = append(found, image.AddressRange{
			Start: uint64(start) &^ (image.PageSize - 1),
			End:   min(pageAlign(uint64(end)), pageAlign(size)),
		})
		at = end
	}
	return union(found), nil
}

// compare finds the pages that are not as they were sent.
func (o *object) compare(ctx context.Context, which ranges) (ranges, error) {
	const piece = 256 << 10
	var mu sync.Mutex
	var differ []image.AddressRange
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.GOMAXPROCS(0))
	buffers := sync.Pool{New: func() any { return new([piece]byte) }}
	for _, r := range which {
		for at := r.Start; at < r.End; at += piece {
			group.Go(func() error {
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				buf := buffers.Get().(*[piece]byte)
				defer buffers.Put(buf)
				part := buf[:min(piece, r.End-at)]
				found, err := o.comparePiece(at, part)
				mu.Lock()
				defer mu.Unlock()
				differ = append(differ, found...)
				return err
			})
		}
	}
	err := group.Wait()
	return union(differ), err
}

func (o *object) comparePiece(at uint64, buf []byte) ([]image.AddressRange, error) {
	n, err := unix.Pread(int(o.file.Fd()), buf, int64(at))
	if err != nil {
		return nil, fmt.Errorf("reading object %s: %w", o.file.Name(), err)
	}
	clear(buf[o.within(n, at):])
	var differ []image.AddressRange
	for ; len(buf) > 0; buf = buf[image.PageSize:] {
		if !o.hashes.same(at/image.PageSize, buf[:image.PageSize]) {
			differ = append(differ, image.AddressRange{Start: at, End: at + image.PageSize})
		}
		at += image.PageSize
	}
	return differ, nil
}

// within is how many of n bytes at an offset the destination has room for. What
// was appended since it was told the size comes with a later round; until then
// the rest of the last page counts as zero on both sides.
func (o *object) within(n int, at uint64) int {
	return int(min(uint64(n), o.size-min(at, o.size)))
}

// hashes remembers pages by their hashes, which nobody outside of this process
// can foresee.
type hashes struct {
	seed maphash.Seed

	mu     sync.Mutex
	chunks map[uint64]*hashChunk
}

const chunkPages = 512

// A hashChunk is about adjacent pages; 0: not known.
type hashChunk [chunkPages]uint64

func newHashes() *hashes {
	return &hashes{seed: maphash.MakeSeed(), chunks: make(map[uint64]*hashChunk)}
}

// of is never 0.
func (h *hashes) of(page []byte) uint64 { return maphash.Bytes(h.seed, page) | 1 }

func (h *hashes) chunk(page uint64) *hashChunk {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := h.chunks[page/chunkPages]
	if c == nil {
		c = new(hashChunk)
		h.chunks[page/chunkPages] = c
	}
	return c
}

// note remembers adjacent pages. Different pages may be noted at the same time.
func (h *hashes) note(page uint64, content []byte) {
	for ; len(content) > 0; content = content[image.PageSize:] {
		h.chunk(page)[page%chunkPages] = h.of(content[:image.PageSize])
		page++
	}
}

// same reports whether a page is as it was noted.
func (h *hashes) same(page uint64, content []byte) bool {
	return h.chunk(page)[page%chunkPages] == h.of(content)
}
