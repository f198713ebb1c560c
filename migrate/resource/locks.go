package resource

import (
	"context"
	"errors"
	"fmt"
	"io"
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
		return errors.Join(setRecordLocks(r.Ctx, r.Process, r.Image.Files, r.Shell, false)...)
	},
}

// A LockError says which lock could not be taken or released.
type LockError struct {
	Lock image.Lock
	Path string
	Err  error
}

func (e *LockError) Error() string {
	kind := map[image.LockKind]string{image.LockPOSIX: "POSIX", image.LockOFD: "OFD", image.LockFlock: "flock"}[e.Lock.Kind]
	how, where := "read", ""
	if e.Lock.Write {
		how = "write"
	}
	switch {
	case e.Lock.Kind == image.LockFlock:
	case e.Lock.Len == 0:
		where = fmt.Sprintf(" from byte %d on", e.Lock.Start)
	default:
		where = fmt.Sprintf(" of bytes %d to %d", e.Lock.Start, e.Lock.Start+e.Lock.Len-1)
	}
	why := e.Err.Error()
	if e.taken() {
		why = "another process holds it"
	}
	return fmt.Sprintf("%s %s lock on %s%s: %s", kind, how, e.Path, where, why)
}

func (e *LockError) Unwrap() error { return e.Err }

func (e *LockError) taken() bool {
	return errors.Is(e.Err, unix.EAGAIN) || errors.Is(e.Err, unix.EACCES)
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
			d.Block(migrate.CodeDescriptor, "give it up before the move", "%v, %s, holds a lease (%s)", o, o.link, held.Kind)
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

// setFileLocks takes or releases those that belong to a description, by a
// descriptor of it. All are tried.
func setFileLocks(fd int, f *image.File, release bool) (errs []error) {
	for i := range f.Locks {
		if err := setFileLock(fd, &f.Locks[i], release); err != nil {
			errs = append(errs, &LockError{f.Locks[i], f.Path, err})
		}
	}
	return errs
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
		return unix.Flock(fd, how|unix.LOCK_NB)
	}
	abi := lockABIOf(l)
	lock := unix.Flock_t{Type: abi.typ, Whence: abi.whence, Start: abi.start, Len: abi.length}
	if release {
		lock.Type = unix.F_UNLCK
	}
	return unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &lock)
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
	if err := errors.Join(setLocks(ctx, m, stopped, true)...); err != nil {
		return fmt.Errorf("releasing file locks: %w", err)
	}
	return nil
}

// RetakeLocks takes back what ReleaseLocks has released, as far as it can.
// taken are the locks that somebody else has by now; it may be called again.
func RetakeLocks(ctx context.Context, m *image.Image, stopped []*parasite.Process) (taken []error, err error) {
	var errs []error
	for _, err := range setLocks(ctx, m, stopped, false) {
		if lock, ok := errors.AsType[*LockError](err); ok && lock.taken() {
			taken = append(taken, err)
		} else {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return taken, fmt.Errorf("taking file locks back: %w", err)
	}
	return taken, nil
}

// setLocks tries all of them, whatever becomes of one.
func setLocks(ctx context.Context, m *image.Image, stopped []*parasite.Process, release bool) (errs []error) {
	if !HasLocks(m) {
		return nil
	}
	done := make(map[image.Index]bool)
	for i := range m.Processes {
		p, target := &m.Processes[i], stopped[i]
		errs = append(errs, setRecordLocks(ctx, p, m.Files, target, release)...)
		if err := target.ReleaseScratch(ctx); err != nil {
			errs = append(errs, err)
		}
		for _, d := range p.Descriptors {
			if !done[d.File] {
				errs = append(errs, setDescriptionLocks(p.PID, d.FD, &m.Files[d.File], release)...)
			}
			done[d.File] = true
		}
	}
	return errs
}

func setDescriptionLocks(pid, fd int, f *image.File, release bool) []error {
	if len(f.Locks) == 0 {
		return nil
	}
	own, err := borrow(pid, fd)
	if err != nil {
		return []error{err}
	}
	defer unix.Close(own)
	return setFileLocks(own, f, release)
}

// setRecordLocks acts inside the process: record locks belong to its table of
// descriptors. All are tried.
func setRecordLocks(ctx context.Context, p *image.Process, files []image.File, target *parasite.Process, release bool) (errs []error) {
	for rest := p.Locks; len(rest) > 0; {
		b := target.Thread(p.PID).Batch(ctx)
		for n := range rest {
			if b.Room() < lockRoom {
				break
			}
			fd, ok := descriptorOf(p, rest[n].File)
			if !ok {
				return append(errs, &LockError{rest[n], files[rest[n].File].Path, errors.New("no descriptor of the file")})
			}
			abi := lockABIOf(&rest[n])
			if release {
				abi.typ = unix.F_UNLCK
			}
			b.Call(unix.SYS_FCNTL, uintptr(fd), unix.F_SETLK, parasite.Struct(b, &abi))
		}
		if err := b.Run(ctx); err != nil {
			return append(errs, err)
		}
		for i := range b.Len() {
			if _, err := b.Result(i); err != nil {
				errs = append(errs, &LockError{rest[i], files[rest[i].File].Path, err})
			}
		}
		rest = rest[b.Len():]
	}
	return errs
}

// lockRoom is more than the call and the memory for one lock take in a batch.
const lockRoom = 256

// descriptorOf is a descriptor of the process that refers to a description.
func descriptorOf(p *image.Process, file image.Index) (int, bool) {
	for _, d := range p.Descriptors {
		if d.File == file {
			return d.FD, true
		}
	}
	return 0, false
}
