package resource

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"structs"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/parasite"
)

// recordLocks: POSIX record locks (fcntl(2)), which belong to the process. The
// other kinds, OFD locks and flock(2), belong to descriptions and are taken
// when these are opened (takeFileLocks).
//
// Both hosts may see the same file, so the source lets go of its locks inside
// the freeze and the destination takes them before it is prepared; if it
// cannot, the migration aborts and the source takes them back.
var recordLocks = processKind{
	name: "record locks",
	restore: func(r *ProcessRestore) error {
		if len(r.Process.Locks) == 0 {
			return nil
		}
		s := r.script()
		for _, l := range r.Process.Locks {
			fd, ok := r.numberOf(l.File)
			if !ok {
				return fmt.Errorf("no descriptor for the lock on %s", r.Image.Files[l.File].Path)
			}
			s.add(func(b *parasite.Batch) {
				abi := lockABIOf(&l)
				b.Call(unix.SYS_FCNTL, uintptr(fd), unix.F_SETLK, parasite.Struct(b, &abi))
			})
		}
		return s.run()
	},
}

// numberOf is a descriptor of the process that refers to a description.
func (r *ProcessRestore) numberOf(file image.Index) (int, bool) {
	for _, d := range r.Process.Descriptors {
		if d.File == file {
			return d.FD, true
		}
	}
	return 0, false
}

// dumpFileLocks notes the locks that are held by way of a description.
func (d *ProcessDump) dumpFileLocks(o *openFile, f *image.File) {
	index := len(d.image.Files) // where f is about to be put
	for _, held := range o.info.Locks {
		if held.Waiting {
			continue // a thread sleeps in the call, which it makes again
		}
		l := image.Lock{File: image.None, Write: held.Write, Start: held.Start}
		if held.End >= 0 {
			l.Len = held.End - held.Start + 1
		}
		switch held.Kind {
		case "POSIX":
			l.Kind, l.File = image.LockPOSIX, index
			d.Process.Locks = append(d.Process.Locks, l)
		case "OFDLCK":
			l.Kind = image.LockOFD
			f.Locks = append(f.Locks, l)
		case "FLOCK":
			l.Kind = image.LockFlock
			f.Locks = append(f.Locks, l)
		default:
			d.Block(migrate.CodeDescriptor, "give it up before the move", "descriptor %d of process %d, %s, holds a lease (%s)", o.fd, d.Proc.PID, o.link, held.Kind)
		}
	}
}

// lockABI is struct flock (include/uapi/asm-generic/fcntl.h).
type lockABI struct {
	_      structs.HostLayout
	typ    int16
	whence int16
	_      int32
	start  int64
	length int64
	pid    int32
	_      int32
}

func lockABIOf(l *image.Lock) lockABI {
	typ := int16(unix.F_RDLCK)
	if l.Write {
		typ = unix.F_WRLCK
	}
	return lockABI{typ: typ, whence: io.SeekStart, start: l.Start, length: l.Len}
}

// takeFileLocks takes those that belong to a description, by a descriptor of it.
func takeFileLocks(fd int, locks []image.Lock) error {
	for i := range locks {
		if err := setFileLock(fd, &locks[i], false); err != nil {
			return err
		}
	}
	return nil
}

func setFileLock(fd int, l *image.Lock, release bool) error {
	if l.Kind == image.LockFlock {
		how := unix.LOCK_SH
		switch {
		case release:
			how = unix.LOCK_UN
		case l.Write:
			how = unix.LOCK_EX
		}
		if err := unix.Flock(fd, how|unix.LOCK_NB); err != nil {
			return fmt.Errorf("flock: %w", err)
		}
		return nil
	}
	abi := lockABIOf(l)
	lock := unix.Flock_t{Type: abi.typ, Whence: abi.whence, Start: abi.start, Len: abi.length}
	if release {
		lock.Type = unix.F_UNLCK
	}
	if err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &lock); err != nil {
		return fmt.Errorf("open file description lock: %w", err)
	}
	return nil
}

// HasLocks reports whether a tree holds any.
func HasLocks(m *image.Image) bool {
	for i := range m.Processes {
		if len(m.Processes[i].Locks) > 0 {
			return true
		}
	}
	for i := range m.Files {
		if len(m.Files[i].Locks) > 0 {
			return true
		}
	}
	return false
}

// ReleaseLocks lets go of all locks of a dumped tree. The processes must be as
// they were dumped: stopped, and able to make remote calls.
func ReleaseLocks(ctx context.Context, m *image.Image, stopped []*parasite.Process) error {
	return setLocks(ctx, m, stopped, true)
}

// RetakeLocks takes back what ReleaseLocks has released.
func RetakeLocks(ctx context.Context, m *image.Image, stopped []*parasite.Process) error {
	return setLocks(ctx, m, stopped, false)
}

func setLocks(ctx context.Context, m *image.Image, stopped []*parasite.Process, release bool) error {
	if !HasLocks(m) {
		return nil
	}
	var errs []error
	for i := range m.Processes {
		p, target := &m.Processes[i], stopped[i]
		errs = append(errs, setRecordLocks(ctx, p, target, release))
		for _, d := range p.Descriptors {
			errs = append(errs, setDescriptionLocks(p.PID, d.FD, m.Files[d.File].Locks, release))
		}
	}
	if err := errors.Join(errs...); err != nil {
		if release {
			return fmt.Errorf("releasing file locks: %w", err)
		}
		return fmt.Errorf("taking file locks back: %w", err)
	}
	return nil
}

func setDescriptionLocks(pid, fd int, locks []image.Lock, release bool) error {
	if len(locks) == 0 {
		return nil
	}
	own, err := borrow(pid, fd)
	if err != nil {
		return err
	}
	defer unix.Close(own)
	for i := range locks {
		if err := setFileLock(own, &locks[i], release); err != nil {
			return err
		}
	}
	return nil
}

// setRecordLocks acts inside the process: record locks belong to its table of
// descriptors.
func setRecordLocks(ctx context.Context, p *image.Process, target *parasite.Process, release bool) error {
	if len(p.Locks) == 0 {
		return nil
	}
	b := target.Thread(p.PID).Batch(ctx)
	for i := range p.Locks {
		l := &p.Locks[i]
		fd := math.MaxInt32
		for _, d := range p.Descriptors {
			if d.File == l.File {
				fd = d.FD
			}
		}
		abi := lockABIOf(l)
		if release {
			abi.typ = unix.F_UNLCK
		}
		b.Call(unix.SYS_FCNTL, uintptr(fd), unix.F_SETLK, parasite.Struct(b, &abi))
	}
	return errors.Join(b.RunAll(ctx), target.ReleaseScratch(ctx))
}
