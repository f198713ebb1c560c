package resource

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"structs"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/migrate/procfs"
	"github.com/pagurus-project/pagurus/parasite"
)

// checkMemory compares what the process holds with what the destination has.
func checkMemory(c *Check, p *image.Process) {
	memory, err := procfs.ReadMeminfo()
	if err != nil {
		c.Block(migrate.CodeMemory, "see that the agent there can read /proc/meminfo", "%v", err)
		return
	}
	needed := p.Memory.Resident
	for i := range c.Image.Objects {
		o := &c.Image.Objects[i]
		if o.Kind == image.ObjectDeletedFile {
			if dir := filepath.Dir(o.Name); !inMemory(dir) {
				checkDisk(c, o, dir)
				continue
			}
		}
		needed += o.Held
	}
	if available := memory.Available; needed > available {
		c.Block(migrate.CodeMemory, "free memory there, or choose another host", "process %d holds %d MiB, the destination has %d MiB available", p.PID, needed>>20, available>>20)
	}
}

// checkDisk compares what a deleted file holds with what is left where it will be.
func checkDisk(c *Check, o *image.Object, dir string) {
	var fs unix.Statfs_t
	if unix.Statfs(dir, &fs) != nil {
		return // that it is not there is reported where the file would be made
	}
	if left := fs.Bavail * uint64(fs.Bsize); o.Held > left {
		c.Block(migrate.CodeMemory, "free space there, or choose another host", "the deleted file %s holds %d MiB, the destination has %d MiB left in %s", o.Name, o.Held>>20, left>>20, dir)
	}
}

// inMemory reports whether the files of a directory are kept in memory.
func inMemory(dir string) bool {
	var fs unix.Statfs_t
	return unix.Statfs(dir, &fs) == nil && (fs.Type == unix.TMPFS_MAGIC || fs.Type == unix.RAMFS_MAGIC)
}

// mmMapABI is struct prctl_mm_map (include/uapi/linux/prctl.h).
type mmMapABI struct {
	_        structs.HostLayout
	marks    [11]uint64
	auxv     uint64
	auxvSize uint32
	exeFD    uint32
}

const (
	prSetMM    = 35
	prSetMMMap = 14
)

// restoreMarks sets the marks, the auxiliary vector and the link to the program.
func restoreMarks(r *ProcessRestore) error {
	m := &r.Process.Memory
	exe := ^uintptr(0)
	if m.Exe != image.None {
		open := r.batch()
		call := open.Call(unix.SYS_OPEN, open.String(r.Image.Files[m.Exe].Path), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err := open.Run(r.Ctx); err != nil {
			return err
		}
		var err error
		if exe, err = open.Result(call); err != nil {
			return &os.PathError{Op: "open", Path: r.Image.Files[m.Exe].Path, Err: err}
		}
	}
	k := &m.Marks
	b := r.batch()
	abi := mmMapABI{
		marks: [11]uint64{
			k.StartCode, k.EndCode, k.StartData, k.EndData, k.StartBrk, k.Brk,
			k.StartStack, k.ArgStart, k.ArgEnd, k.EnvStart, k.EnvEnd,
		},
		auxv: uint64(b.Bytes(m.Auxv)), auxvSize: uint32(len(m.Auxv)), exeFD: uint32(exe),
	}
	b.Call(unix.SYS_PRCTL, prSetMM, prSetMMMap, parasite.Struct(b, &abi), unsafe.Sizeof(abi), 0)
	if m.Exe != image.None {
		b.Call(unix.SYS_CLOSE, exe)
	}
	return b.RunAll(r.Ctx)
}

// protection: what is done to mappings when their content is in its place:
// guard pages, advice, names, locks, the protection itself, seals.
var protection = processKind{
	name: "protection",
	restore: func(r *ProcessRestore) error {
		s := r.script()
		m := &r.Process.Memory
		for _, g := range m.Guards {
			s.call(unix.SYS_MADVISE, uintptr(g.Start), uintptr(g.Bytes()), madvGuardInstall)
		}
		for i := range m.Mappings {
			restoreAdvice(s, &m.Mappings[i])
		}
		if err := s.run(); err != nil {
			return err
		}
		if err := restoreNames(r); err != nil {
			return err
		}
		if err := restoreMemoryLocks(r); err != nil {
			return err
		}
		for i := range m.Mappings {
			// Of all of them: how they were mapped is how they looked in an earlier round.
			if p := &m.Mappings[i]; p.Backing != image.BackingKernel {
				s.call(unix.SYS_MPROTECT, uintptr(p.Start), uintptr(p.Bytes()), uintptr(p.Prot))
			}
		}
		for i := range m.Mappings {
			if p := &m.Mappings[i]; p.Flags&image.FlagSealed != 0 && p.Backing != image.BackingKernel {
				s.call(sysMseal, uintptr(p.Start), uintptr(p.Bytes()), 0)
			}
		}
		return s.run()
	},
}

// Numbers that x/sys/unix lacks.
const (
	madvGuardInstall = 102 // include/uapi/asm-generic/mman-common.h, Linux 6.13
	sysMseal         = 462 // arch/x86/entry/syscalls/syscall_64.tbl, Linux 6.10
	prSetVMA         = 0x53564d41
	prSetVMAAnonName = 0
)

// ShellProtection is how a mapping is protected while its pages are placed.
// Private memory is writable, except for reservations without access, which
// would count against the limit on committed memory.
func ShellProtection(m *image.Mapping) int {
	switch {
	case m.Prot == unix.PROT_NONE && m.Flags&image.FlagNoReserve == 0:
		return unix.PROT_NONE
	case m.Private(), m.Flags&image.FlagMayWrite != 0:
		return unix.PROT_READ | unix.PROT_WRITE
	}
	return unix.PROT_READ
}

// advice are the flags that madvise(2) sets.
var advice = []struct {
	flag   image.VMFlags
	advice uintptr
}{
	{image.FlagSequential, unix.MADV_SEQUENTIAL},
	{image.FlagRandom, unix.MADV_RANDOM},
	{image.FlagDontFork, unix.MADV_DONTFORK},
	{image.FlagDontDump, unix.MADV_DONTDUMP},
	{image.FlagWipeOnFork, unix.MADV_WIPEONFORK},
	{image.FlagHugePage, unix.MADV_HUGEPAGE},
	{image.FlagNoHugePage, unix.MADV_NOHUGEPAGE},
	{image.FlagMergeable, unix.MADV_MERGEABLE},
}

func restoreAdvice(s *script, m *image.Mapping) {
	if m.Backing == image.BackingKernel {
		return
	}
	for _, a := range advice {
		if m.Flags&a.flag != 0 {
			s.call(unix.SYS_MADVISE, uintptr(m.Start), uintptr(m.Bytes()), a.advice)
		}
	}
}

// restoreNames names anonymous memory. A kernel that does not show names
// refuses them, which harms nobody.
func restoreNames(r *ProcessRestore) error {
	named := func(m *image.Mapping) bool {
		return m.Name != "" && m.Backing != image.BackingKernel
	}
	m := r.Process.Memory.Mappings
	for i := 0; i < len(m); {
		b := r.batch()
		for ; i < len(m) && b.Room() > scriptRoom; i++ {
			if named(&m[i]) {
				b.Call(unix.SYS_PRCTL, prSetVMA, prSetVMAAnonName, uintptr(m[i].Start), uintptr(m[i].Bytes()), b.String(m[i].Name))
			}
		}
		if err := b.Run(r.Ctx); err != nil {
			return err
		}
	}
	return nil
}

// restoreMemoryLocks locks memory (mlock2(2), mlockall(2)), while the shell
// still may lock as much as it needs.
func restoreMemoryLocks(r *ProcessRestore) error {
	const mlockOnFault = 1
	s := r.script()
	for i := range r.Process.Memory.Mappings {
		m := &r.Process.Memory.Mappings[i]
		if m.Flags&image.FlagLocked == 0 || m.Backing == image.BackingKernel {
			continue
		}
		flags := uintptr(0)
		// What cannot be read cannot be brought in either.
		if m.Flags&image.FlagLockOnFault != 0 || ShellProtection(m) == unix.PROT_NONE {
			flags = mlockOnFault
		}
		s.call(unix.SYS_MLOCK2, uintptr(m.Start), uintptr(m.Bytes()), flags)
	}
	if future := r.Process.Memory.LockFuture; future != 0 {
		s.call(unix.SYS_MLOCKALL, uintptr(future))
	}
	return s.run()
}

// Map makes mappings in a shell, as far as their pages can be placed in them.
// The objects are open files of those of the layout.
func Map(ctx context.Context, shell *parasite.Process, mappings []image.Mapping, files []image.File, objects []*os.File) error {
	for i := range mappings {
		m := &mappings[i]
		if err := mapOne(ctx, shell, m, files, objects); err != nil {
			return fmt.Errorf("mapping %#x-%#x: %w", m.Start, m.End, err)
		}
	}
	return nil
}

func mapOne(ctx context.Context, shell *parasite.Process, m *image.Mapping, files []image.File, objects []*os.File) error {
	if m.Backing == image.BackingKernel {
		return nil
	}
	b := shell.Thread(shell.PID()).Batch(ctx)
	fd := ^uintptr(0)
	var err error
	switch m.Backing {
	case image.BackingFile:
		fd, err = openIn(ctx, shell, &files[m.File])
	case image.BackingObject:
		fd, err = lend(ctx, shell, objects[m.Object], m.Shared && m.Flags&image.FlagMayWrite != 0)
	}
	if err != nil {
		return err
	}
	flags := uintptr(unix.MAP_FIXED_NOREPLACE | unix.MAP_PRIVATE)
	if m.Shared {
		flags = unix.MAP_FIXED_NOREPLACE | unix.MAP_SHARED
	}
	if m.Backing == image.BackingAnonymous {
		flags |= unix.MAP_ANONYMOUS
	}
	if m.Flags&image.FlagNoReserve != 0 {
		flags |= unix.MAP_NORESERVE
	}
	if m.Flags&image.FlagGrowsDown != 0 {
		flags |= unix.MAP_GROWSDOWN
	}
	protection := ShellProtection(m)
	// Memory that was ever writable counts against the limit on committed memory,
	// and neighbours of which only one counts are never joined: small mappings
	// all do, reservations do not.
	const reservation = 64 << 20
	if m.Private() && protection == unix.PROT_NONE && m.Bytes() < reservation {
		b.Call(unix.SYS_MMAP, uintptr(m.Start), uintptr(m.Bytes()), unix.PROT_READ|unix.PROT_WRITE, flags, fd, uintptr(m.Offset))
		b.Call(unix.SYS_MPROTECT, uintptr(m.Start), uintptr(m.Bytes()), unix.PROT_NONE)
	} else {
		b.Call(unix.SYS_MMAP, uintptr(m.Start), uintptr(m.Bytes()), uintptr(protection), flags, fd, uintptr(m.Offset))
	}
	if m.Backing != image.BackingAnonymous {
		b.Call(unix.SYS_CLOSE, fd)
	}
	return b.RunAll(ctx)
}

// openIn opens a file in the shell.
func openIn(ctx context.Context, shell *parasite.Process, f *image.File) (uintptr, error) {
	b := shell.Thread(shell.PID()).Batch(ctx)
	call := b.Call(unix.SYS_OPEN, b.String(f.Path), uintptr(f.Flags&unix.O_ACCMODE)|unix.O_CLOEXEC, 0)
	if err := b.Run(ctx); err != nil {
		return 0, err
	}
	fd, err := b.Result(call)
	if err != nil {
		return 0, &os.PathError{Op: "open", Path: f.Path, Err: err}
	}
	return fd, nil
}

// lend gives the shell a descriptor of a file of this process, which it may
// only read unless write is set: so that a mapping of it is not in the way of
// a seal against writing.
func lend(ctx context.Context, shell *parasite.Process, file *os.File, write bool) (uintptr, error) {
	own := int(file.Fd())
	if !write {
		var err error
		if own, err = unix.Open(fmt.Sprintf("/proc/self/fd/%d", own), unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
			return 0, err
		}
		defer unix.Close(own)
	}
	open := shell.Thread(shell.PID()).Batch(ctx)
	call := open.Call(unix.SYS_PIDFD_OPEN, uintptr(os.Getpid()), 0)
	if err := open.RunAll(ctx); err != nil {
		return 0, fmt.Errorf("opening the agent in the shell: %w", err)
	}
	pidfd, _ := open.Result(call)
	get := shell.Thread(shell.PID()).Batch(ctx)
	call = get.Call(unix.SYS_PIDFD_GETFD, pidfd, uintptr(own), 0)
	get.Call(unix.SYS_CLOSE, pidfd)
	if err := get.RunAll(ctx); err != nil {
		return 0, fmt.Errorf("handing an object to the shell: %w", err)
	}
	return get.Result(call)
}
