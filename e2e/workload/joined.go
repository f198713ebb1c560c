package main

import "golang.org/x/sys/unix"

// joined is a mapping of which one half, beside memory that is new each time, is
// written before it is one with the other half again: on some kernels no soft-dirty
// bit tells of that (package migrate/dirty).
type joined struct {
	all  []byte
	span *span // all but the new part, and what keeps others away
}

// Pages of it: what is around them may not be accessed.
const (
	joinedFirst = 2
	joinedHalf  = 5
	joinedNew   = joinedFirst + 2*joinedHalf
	joinedPages = joinedNew + 4
)

func newJoined(name pageID) (*joined, error) {
	all, err := unix.Mmap(-1, 0, joinedPages*pageSize, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, err
	}
	j := &joined{all: all, span: &span{
		name: name, data: all[joinedFirst*pageSize : joinedNew*pageSize],
		generations: make([]uint32, 2*joinedHalf), protection: unix.PROT_NONE,
	}}
	if err := j.span.protect(unix.PROT_READ | unix.PROT_WRITE); err != nil {
		return nil, err
	}
	for i := range j.span.generations {
		j.span.write(i)
	}
	return j, nil
}

func (j *joined) protect(first, pages, protection int) error {
	return unix.Mprotect(j.all[first*pageSize:(first+pages)*pageSize], protection)
}

// write writes all of the second half.
func (j *joined) write() error {
	const readWrite = unix.PROT_READ | unix.PROT_WRITE
	const second = joinedFirst + joinedHalf
	err := j.protect(second, joinedHalf, unix.PROT_READ)
	if err == nil {
		err = mapAnew(j.all[joinedNew*pageSize : (joinedNew+1)*pageSize])
	}
	if err == nil {
		err = j.protect(joinedNew, 1, unix.PROT_READ)
	}
	if err == nil {
		err = j.protect(joinedFirst, joinedHalf, unix.PROT_NONE)
	}
	if err == nil {
		err = j.protect(second, joinedHalf, readWrite)
	}
	if err != nil {
		return err
	}
	for i := range joinedHalf {
		j.span.write(joinedHalf + i)
	}
	return j.protect(joinedFirst, joinedHalf, readWrite)
}
