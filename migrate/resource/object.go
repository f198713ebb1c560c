package resource

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/migrate/procfs"
)

// heldBy is how many bytes of a file take up memory or disk (inode(7), st_blocks).
func heldBy(st *unix.Stat_t) uint64 { return uint64(st.Blocks) * 512 }

// object finds the place of the object that a link of /proc leads to, a new
// one if it was not met before. It is not one if the file can be opened by a
// path at the destination.
func (d *TreeDump) object(link, name string, st *unix.Stat_t) (image.Index, bool, error) {
	if index, ok := d.objectIndex[idOf(st)]; ok {
		// It may have grown.
		d.objects[index].Bytes, d.objects[index].Held = uint64(st.Size), heldBy(st)
		return index, true, nil
	}
	o := image.Object{Bytes: uint64(st.Size), Held: heldBy(st), Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid}
	path, deleted := procfs.CutDeleted(name)
	memfd, isMemfd := strings.CutPrefix(path, "/memfd:")
	switch {
	case !deleted || st.Nlink != 0 && !isMemfd:
		return image.None, false, nil
	case isMemfd:
		o.Kind, o.Name = image.ObjectMemfd, memfd
	case path == "/dev/zero":
		o.Kind = image.ObjectSharedAnonymous
	default:
		o.Kind, o.Name = image.ObjectDeletedFile, filepath.Clean(path)
	}
	file, err := os.Open(link)
	if err != nil {
		return image.None, false, err
	}
	if o.Kind == image.ObjectMemfd {
		if o.Seals, err = unix.FcntlInt(file.Fd(), unix.F_GET_SEALS, 0); err != nil {
			return image.None, false, errors.Join(fmt.Errorf("reading seals of %s: %w", name, err), file.Close())
		}
	}
	index := len(d.objects)
	o.Space = objectSpace + uint32(index)
	d.objects = append(d.objects, o)
	d.objectFiles = append(d.objectFiles, file)
	d.objectIndex[idOf(st)] = index
	return index, true, nil
}

// findObjects looks for objects among the descriptors of a process.
func (d *TreeDump) findObjects(p procfs.Process) error {
	fds, err := p.FDs()
	if err != nil {
		return err
	}
	for _, fd := range fds {
		link := fmt.Sprintf("fd/%d", fd)
		name, err := p.Link(link)
		if errors.Is(err, os.ErrNotExist) {
			continue // closed since
		}
		if err != nil {
			return err
		}
		if _, deleted := procfs.CutDeleted(name); !deleted {
			continue
		}
		var st unix.Stat_t
		if err := unix.Stat(p.Path(link), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
			continue // closed since, or another kind that is reported elsewhere
		}
		if _, _, err := d.object(p.Path(link), name, &st); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// MakeObject makes an empty object at the destination and returns a file by
// which it is written. Seals come later (SealObject).
func MakeObject(o *image.Object) (*os.File, error) {
	var file *os.File
	switch o.Kind {
	case image.ObjectMemfd:
		fd, err := unix.MemfdCreate(o.Name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|int(o.Flags))
		if err != nil {
			return nil, fmt.Errorf("making memfd %q: %w", o.Name, err)
		}
		file = os.NewFile(uintptr(fd), "memfd:"+o.Name)
	case image.ObjectDeletedFile:
		var err error
		if file, err = unnamedFile(o.Name, o.Mode); err != nil {
			return nil, fmt.Errorf("making a file in place of the deleted %s: %w", o.Name, err)
		}
		if err := file.Chown(int(o.UID), int(o.GID)); err != nil {
			return nil, errors.Join(err, file.Close())
		}
	case image.ObjectSharedAnonymous:
		var err error
		if file, err = sharedAnonymous(o.Bytes); err != nil {
			return nil, fmt.Errorf("making shared memory of %d bytes: %w", o.Bytes, err)
		}
		return file, nil
	}
	if err := file.Truncate(int64(o.Bytes)); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

// unnamedFile makes a file without a name on the file system where path was.
func unnamedFile(path string, mode uint32) (*os.File, error) {
	dir := filepath.Dir(path)
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, mode)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EISDIR) {
		// A file system without O_TMPFILE: make one with a name and take that away.
		file, err := os.CreateTemp(dir, ".pagurus-*")
		if err != nil {
			return nil, err
		}
		return file, errors.Join(os.Remove(file.Name()), file.Chmod(os.FileMode(mode&0o777)))
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// sharedAnonymous makes memory as mmap(MAP_SHARED | MAP_ANONYMOUS) does and
// returns a file for it, which only its mapping can give.
func sharedAnonymous(size uint64) (*os.File, error) {
	length := (size + image.PageSize - 1) / image.PageSize * image.PageSize
	memory, err := unix.Mmap(-1, 0, int(length), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, err
	}
	start := addressOf(memory)
	file, err := os.OpenFile(fmt.Sprintf("/proc/self/map_files/%x-%x", start, start+length), os.O_RDWR, 0)
	return file, errors.Join(err, unix.Munmap(memory))
}

// SealObject gives an object that is complete the seals that it had (fcntl(2),
// "File sealing").
func SealObject(file *os.File, o *image.Object) error {
	if o.Kind != image.ObjectMemfd || o.Seals == 0 {
		return nil
	}
	if _, err := unix.FcntlInt(file.Fd(), unix.F_ADD_SEALS, o.Seals); err != nil {
		return fmt.Errorf("sealing memfd %q: %w", o.Name, err)
	}
	return nil
}
