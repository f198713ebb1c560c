package resource

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/migrate/procfs"
)

// memoryMarks: what the kernel remembers of an address space beside its
// mappings. The mappings themselves are read when all remote calls are done.
var memoryMarks = processKind{
	name: "memory marks",
	dump: func(d *ProcessDump) error {
		stat, err := d.Proc.Stat()
		if err != nil {
			return err
		}
		mem := &d.Process.Memory
		mem.Marks = image.Marks{
			StartCode: stat.StartCode, EndCode: stat.EndCode, StartData: stat.StartData, EndData: stat.EndData,
			StartBrk: stat.StartBrk, StartStack: stat.StartStack,
			ArgStart: stat.ArgStart, ArgEnd: stat.ArgEnd, EnvStart: stat.EnvStart, EnvEnd: stat.EnvEnd,
		}
		status, err := d.status(d.Proc.PID)
		if err != nil {
			return err
		}
		mem.Resident = status.RSSBytes - min(status.RSSBytes, status.ShmemBytes) + status.SwapBytes
		b := d.batch(d.Proc.PID)
		get := b.Call(unix.SYS_BRK, 0)
		d.then(func() error {
			brk, err := b.Result(get)
			mem.Marks.Brk = uint64(brk)
			if err != nil {
				return err
			}
			return d.readLockFuture()
		})
		mem.Auxv, err = d.Proc.Read("auxv")
		return err
	},
	check:   checkMemory,
	restore: restoreMarks,
}

// readLockFuture finds out whether new mappings are locked into memory
// (mlockall(MCL_FUTURE)): ours was.
func (d *ProcessDump) readLockFuture() error {
	at := uint64(d.Target.Scratch().Data)
	ours, ok := d.flags[d.Proc.PID][at]
	if !ok { // it was mapped since
		flags, err := d.readers.Flags.Flags(d.Proc)
		if err != nil {
			return err
		}
		ours = flags[at]
	}
	if ours.Has("lo") {
		d.Process.Memory.LockFuture = unix.MCL_FUTURE
		if ours.Image()&image.FlagLockOnFault != 0 {
			d.Process.Memory.LockFuture |= unix.MCL_ONFAULT
		}
	}
	return nil
}

// executable finds the place of a process's program among the mapped files.
func (d *TreeDump) executable(p procfs.Process) (image.Index, error) {
	path, err := p.Link("exe")
	if errors.Is(err, os.ErrNotExist) {
		return image.None, nil
	}
	if err != nil {
		return image.None, err
	}
	index, object, err := d.mappedFile(p.Path("exe"), path, false)
	if err != nil {
		return image.None, err
	}
	if object != image.None {
		d.Block(migrate.CodeFileGone, "restart it: its program was removed or replaced on disk", "executable %s of process %d", path, p.PID)
	}
	return index, nil
}

// mappings reads the mappings of a process as an image has them.
func (d *TreeDump) mappings(p procfs.Process) ([]image.Mapping, error) {
	vmas, err := p.Maps()
	if err != nil {
		return nil, err
	}
	flags, err := d.readers.Flags.Flags(p)
	if err != nil {
		return nil, err
	}
	d.flags[p.PID] = flags
	all := make([]image.Mapping, 0, len(vmas))
	for i := range vmas {
		v := &vmas[i]
		if v.Name == "[vsyscall]" {
			continue // at the same place in every process
		}
		m, err := d.mapping(p, v, flags[v.Start])
		if err != nil {
			return nil, fmt.Errorf("mapping %#x-%#x of process %d: %w", v.Start, v.End, p.PID, err)
		}
		all = append(all, m)
	}
	return all, nil
}

// mapping classifies one mapping. What cannot move is reported, and taken for
// anonymous memory so that reading can go on.
func (d *TreeDump) mapping(p procfs.Process, v *procfs.VMA, flags procfs.VMFlags) (image.Mapping, error) {
	m := image.Mapping{
		AddressRange: image.AddressRange{Start: v.Start, End: v.End},
		Prot:         v.Prot, Shared: v.Shared, Backing: image.BackingAnonymous,
		File: image.None, Object: image.None, Flags: flags.Image(),
	}
	if name, ok := strings.CutPrefix(v.Name, "[anon:"); ok {
		m.Name = strings.TrimSuffix(name, "]")
	}
	refuse := func(what string) (image.Mapping, error) {
		d.Block(migrate.CodeMapping, "have the program unmap it, or start it without", "process %d maps %s at %#x", p.PID, what, v.Start)
		m.Shared = false
		return m, nil
	}
	switch {
	case IsKernelMapping(v.Name):
		m.Backing, m.Name = image.BackingKernel, v.Name
		return m, nil
	case flags.Has("ht"):
		return refuse("huge pages of hugetlbfs (" + v.Name + ")")
	case flags.Has("pf") || flags.Has("io"):
		return refuse("device memory (" + v.Name + ")")
	case v.Inode == 0 && strings.HasPrefix(v.Name, "[") && !strings.HasPrefix(v.Name, "[anon:") && v.Name != "[heap]" && !strings.HasPrefix(v.Name, "[stack"):
		return refuse(v.Name)
	case v.Inode == 0 && v.Name != "" && !strings.HasPrefix(v.Name, "["):
		return refuse(v.Name)
	case v.Inode == 0 && v.Shared:
		return refuse("shared memory without an inode " + v.Name)
	case v.Inode == 0, v.Name == "/dev/zero" && !v.Shared:
		return m, nil
	case strings.HasPrefix(v.Name, "/SYSV"):
		return refuse("System V shared memory (" + v.Name + ")")
	case strings.HasPrefix(v.Name, "/[aio]"):
		return refuse("the ring of an AIO context")
	case strings.HasPrefix(v.Name, "/secretmem"):
		return refuse("memory of memfd_secret")
	case strings.HasPrefix(v.Name, "anon_inode:"):
		return refuse(v.Name)
	}
	m.Offset = v.Offset
	link := p.Path(fmt.Sprintf("map_files/%x-%x", v.Start, v.End))
	file, object, err := d.mappedFile(link, v.Name, m.Shared && m.Flags&image.FlagMayWrite != 0)
	switch {
	case errors.Is(err, errNotMovable):
		return refuse(v.Name)
	case errors.Is(err, os.ErrNotExist):
		m.Shared = false
		return m, nil // unmapped since; the next look sees what is there now
	case err != nil:
		return m, err
	case object != image.None:
		m.Backing, m.Object = image.BackingObject, object
	default:
		m.Backing, m.File = image.BackingFile, file
	}
	return m, nil
}

// errNotMovable says that a file is of a kind that cannot be mapped elsewhere.
var errNotMovable = errors.New("not movable")

// mappedFile finds the place of the file behind a link of /proc: an object, or
// a file that the destination opens by its path.
func (d *TreeDump) mappedFile(link, path string, write bool) (file, object image.Index, err error) {
	var st unix.Stat_t
	if err := unix.Stat(link, &st); err != nil {
		return image.None, image.None, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return image.None, image.None, errNotMovable
	}
	if object, ok, err := d.object(link, path, &st); ok || err != nil {
		return image.None, object, err
	}
	key := mappedKey{idOf(&st), path, write}
	if index, ok := d.mappedIndex[key]; ok {
		return index, image.None, nil
	}
	f := image.File{Kind: image.FileRegular, Path: path, Object: image.None, Pipe: image.None, Socket: image.None}
	if write {
		f.Flags = unix.O_RDWR
	}
	if !d.reachable(path, &st) {
		d.Block(migrate.CodeFileGone, "restart it, or put the file back", "mapped file %s was renamed, replaced or is hidden by a mount", path)
	}
	if f.Identity, err = d.identity(link, path, &st, write, true); err != nil {
		return image.None, image.None, err
	}
	index := len(d.mapped)
	d.mapped = append(d.mapped, f)
	d.mappedIndex[key] = index
	return index, image.None, nil
}

// reachable reports whether path leads to the file that st describes.
func (d *TreeDump) reachable(path string, st *unix.Stat_t) bool {
	var there unix.Stat_t
	return unix.Stat(path, &there) == nil && idOf(&there) == idOf(st)
}
