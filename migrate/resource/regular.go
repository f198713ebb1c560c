package resource

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/migrate/image"
)

// regularFile: files and directories that the destination opens by the same
// path, O_PATH descriptors among them.
var regularFile = fileKind{
	dump: func(d *ProcessDump, o *openFile, f *image.File) error {
		link := o.path()
		var fs unix.Statfs_t
		if err := unix.Statfs(link, &fs); err != nil {
			return fmt.Errorf("reading its file system: %w", err)
		}
		if f.Kind == image.FileRegular && fs.Type == unix.PROC_SUPER_MAGIC {
			d.Block(migrate.CodeDescriptor, "have the program close it: it shows the kernel of this host", "%v is %s", o, o.link)
			f.Kind, f.Path = image.FileDevice, "/dev/null" // so that reading can go on
			return nil
		}
		if f.Kind == image.FileRegular {
			index, ok, err := d.object(link, o.link, &o.st)
			if err != nil {
				return err
			}
			if ok {
				f.Kind, f.Object = image.FileObject, index
				return nil
			}
		}
		f.Path = o.link
		if f.Kind == image.FilePath && o.st.Mode&unix.S_IFMT == unix.S_IFLNK {
			f.Flags |= unix.O_NOFOLLOW
		}
		if !d.reachable(o.link, &o.st) && f.Flags&unix.O_NOFOLLOW == 0 {
			d.Block(migrate.CodeFileGone, "close it, or put the file back", "%v: %s was removed, renamed, replaced or is hidden by a mount", o, o.link)
		}
		writes := f.Flags&unix.O_ACCMODE != unix.O_RDONLY
		var err error
		f.Identity, err = d.identity(link, o.link, &o.st, writes, false)
		return err
	},
	check: checkIdentity,
	open: func(_ *TreeRestore, f *image.File) (int, error) {
		// The flags that act only at opening are not among a description's flags.
		fd, err := unix.Open(f.Path, f.Flags|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
		if err != nil {
			return 0, err
		}
		if f.Kind != image.FilePath {
			if _, err := unix.Seek(fd, f.Position, unix.SEEK_SET); err != nil {
				return 0, fmt.Errorf("seeking to %d: %w", f.Position, err)
			}
		}
		return fd, setAsync(fd, f.Flags)
	},
}

// setAsync turns on signal-driven I/O, which open(2) ignores.
func setAsync(fd, flags int) error {
	if flags&unix.O_ASYNC == 0 {
		return nil
	}
	return setStatusFlags(fd, flags)
}

// objectFile: descriptors of memfds and deleted files.
var objectFile = fileKind{
	dump: nil, // found out by regularFile
	open: func(r *TreeRestore, f *image.File) (int, error) {
		// A description of its own, with its own position.
		path := fmt.Sprintf("/proc/self/fd/%d", r.objects[f.Object].Fd())
		fd, err := unix.Open(path, f.Flags&^(unix.O_TMPFILE|unix.O_NOFOLLOW)|unix.O_CLOEXEC, 0)
		if err != nil {
			return 0, err
		}
		if _, err := unix.Seek(fd, f.Position, unix.SEEK_SET); err != nil {
			return 0, fmt.Errorf("seeking to %d: %w", f.Position, err)
		}
		return fd, setAsync(fd, f.Flags)
	},
}

// plainDevices are the character devices without state, which are the same on
// every host (Documentation/admin-guide/devices.txt): null, zero, full, random
// and urandom.
var plainDevices = map[uint64]bool{
	unix.Mkdev(1, 3): true, unix.Mkdev(1, 5): true, unix.Mkdev(1, 7): true, unix.Mkdev(1, 8): true, unix.Mkdev(1, 9): true,
}

// deviceFile: such a device.
var deviceFile = fileKind{
	dump: func(_ *ProcessDump, o *openFile, f *image.File) error {
		f.Path = o.link
		return nil
	},
	check: func(c *Check, f *image.File) {
		if info, err := os.Stat(f.Path); err != nil || info.Mode()&os.ModeCharDevice == 0 {
			c.Block(migrate.CodeFileMissing, "make the device there", "device %s", f.Path)
		}
	},
	open: func(_ *TreeRestore, f *image.File) (int, error) {
		fd, err := unix.Open(f.Path, f.Flags|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
		if err != nil {
			return 0, err
		}
		return fd, setAsync(fd, f.Flags)
	},
}
