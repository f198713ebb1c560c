package source

import (
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/pageserver"
)

// memory is where the pages of the tree are read. Spaces are added between
// rounds only, so reading needs no lock.
type memory struct {
	processes map[pageserver.SpaceID]*process
	objects   map[pageserver.SpaceID]*object
}

var _ pageserver.Source = (*memory)(nil)

// Read implements [pageserver.Source].
func (m *memory) Read(space pageserver.SpaceID, ranges []pageserver.Range, buf []byte) ([]pageserver.Range, error) {
	if p := m.processes[space]; p != nil {
		return p.read(ranges, buf)
	}
	if o := m.objects[space]; o != nil {
		return o.read(ranges, buf)
	}
	return nil, fmt.Errorf("there is no space %d", space)
}

// read reads private memory. What process_vm_readv(2) cannot read, because it
// is protected from the process itself, is read by way of /proc/PID/mem; what
// cannot be read at all is missing.
func (p *process) read(ranges []pageserver.Range, buf []byte) (missing []pageserver.Range, err error) {
	remote := make([]unix.RemoteIovec, len(ranges))
	for i, r := range ranges {
		remote[i] = unix.RemoteIovec{Base: uintptr(r.First) * image.PageSize, Len: int(r.Pages) * image.PageSize}
	}
	for len(remote) > 0 {
		n, err := p.readMost(remote, buf)
		if err != nil {
			return nil, err
		}
		remote, buf = advance(remote, n), buf[n:]
		if len(remote) == 0 {
			break
		}
		first := &remote[0]
		n, err = p.readProtected(uint64(first.Base), buf[:first.Len])
		if err != nil {
			return nil, err
		}
		if n == 0 {
			missing = append(missing, pageserver.Range{First: pageserver.PageNo(first.Base / image.PageSize), Pages: 1})
			n = image.PageSize
		}
		remote, buf = advance(remote, n), buf[n:]
	}
	return missing, nil
}

// readMost reads up to the first page that cannot be read and returns how many
// bytes that were.
func (p *process) readMost(remote []unix.RemoteIovec, buf []byte) (int, error) {
	local := []unix.Iovec{{Base: &buf[0]}}
	local[0].SetLen(len(buf))
	n, err := unix.ProcessVMReadv(p.pid, local, remote, 0)
	switch {
	case errors.Is(err, unix.EFAULT):
		return 0, nil
	case errors.Is(err, unix.ESRCH):
		return 0, errors.Join(p.check(), fmt.Errorf("%w: process %d has exited", ErrProcess, p.pid))
	case err != nil:
		return 0, fmt.Errorf("reading memory of process %d: %w", p.pid, err)
	}
	return n &^ (image.PageSize - 1), nil
}

// readProtected reads adjacent pages as far as there are any.
func (p *process) readProtected(addr uint64, buf []byte) (int, error) {
	n, err := unix.Pread(int(p.memory.Fd()), buf, int64(addr))
	switch {
	case errors.Is(err, unix.EIO), errors.Is(err, unix.EFAULT):
		return 0, nil
	case err != nil:
		return 0, fmt.Errorf("reading memory of process %d: %w", p.pid, err)
	case n == 0:
		return 0, errors.Join(p.check(), fmt.Errorf("%w: the memory of process %d is gone", ErrProcess, p.pid))
	}
	return n &^ (image.PageSize - 1), nil
}

// advance takes n bytes off the front.
func advance(remote []unix.RemoteIovec, n int) []unix.RemoteIovec {
	for n > 0 {
		step := min(n, remote[0].Len)
		remote[0].Base += uintptr(step)
		remote[0].Len -= step
		n -= step
		if remote[0].Len == 0 {
			remote = remote[1:]
		}
	}
	return remote
}

// read reads pages of an object and, if it is to be compared later, remembers
// what they were.
func (o *object) read(ranges []pageserver.Range, buf []byte) (missing []pageserver.Range, err error) {
	for _, r := range ranges {
		part := buf[:r.Pages*image.PageSize]
		buf = buf[len(part):]
		n, err := o.file.ReadAt(part, int64(r.First)*image.PageSize)
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("reading object %s: %w", o.file.Name(), err)
		}
		n = o.within(n, uint64(r.First)*image.PageSize)
		there := (n + image.PageSize - 1) / image.PageSize
		clear(part[n : there*image.PageSize])
		if rest := r.Pages - uint64(there); rest > 0 {
			missing = append(missing, pageserver.Range{First: r.First + pageserver.PageNo(there), Pages: rest})
		}
		if o.hashes != nil {
			o.hashes.note(uint64(r.First), part[:there*image.PageSize])
		}
	}
	return missing, nil
}
