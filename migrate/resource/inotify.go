package resource

import (
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/migrate/procfs"
)

// inotifyFile: inotify(7). Watches are made again on the same paths with the
// same numbers. Unread events cannot be put into another instance, so a freeze
// with some has to be tried again.
var inotifyFile = fileKind{
	dump: func(d *ProcessDump, o *openFile, f *image.File) error {
		f.Inotify = &image.Inotify{}
		for _, line := range o.info.Lines {
			if line.Name != "inotify" {
				continue
			}
			w, watched, err := parseInotifyWatch(line.Value)
			if err != nil {
				return err
			}
			if w.Path = watched.path(); w.Path == "" {
				d.Block(migrate.CodeDescriptor, "have the program remove the watch", "%v (inotify) watches a file that has no path any more (%s)", o, line.Value)
				continue
			}
			f.Inotify.Watches = append(f.Inotify.Watches, w)
		}
		slices.SortFunc(f.Inotify.Watches, func(a, b image.InotifyWatch) int { return a.Number - b.Number })
		fd, err := o.borrow()
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		unread, err := unix.IoctlGetInt(fd, unix.TIOCINQ)
		if err != nil {
			return fmt.Errorf("asking for unread events: %w", err)
		}
		if unread > 0 && !d.Inspect {
			return fmt.Errorf("inotify descriptor %d has unread events: %w", o.fd, ErrTryAgain)
		}
		if len(f.Inotify.Watches) > 0 {
			d.Warn(migrate.CodeDegraded, "", "events that %v (inotify) would get while the process stands still are lost", o)
		}
		return nil
	},
	check: func(c *Check, f *image.File) {
		for _, w := range f.Inotify.Watches {
			if _, err := os.Lstat(w.Path); err != nil {
				c.Block(migrate.CodeFileMissing, "make it there, or share the file system", "%s, which is watched by inotify", w.Path)
			}
		}
	},
	open: func(_ *TreeRestore, f *image.File) (int, error) {
		fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
		if err != nil {
			return 0, err
		}
		for _, w := range f.Inotify.Watches {
			if err := addWatch(fd, w); err != nil {
				return 0, errors.Join(fmt.Errorf("watching %s: %w", w.Path, err), unix.Close(fd))
			}
		}
		return fd, setStatusFlags(fd, f.Flags)
	},
}

// ErrTryAgain says that what stands in the way of a dump will soon be gone.
var ErrTryAgain = errors.New("not at this moment")

// inotifyIOCSetNextWD is INOTIFY_IOC_SETNEXTWD (include/uapi/linux/inotify.h).
const inotifyIOCSetNextWD = 0x40044900

func addWatch(fd int, w image.InotifyWatch) error {
	if err := unix.IoctlSetInt(fd, inotifyIOCSetNextWD, w.Number); err != nil {
		return fmt.Errorf("asking for number %d: %w", w.Number, err)
	}
	got, err := unix.InotifyAddWatch(fd, w.Path, w.Mask|unix.IN_DONT_FOLLOW)
	if err != nil {
		return err
	}
	if got != w.Number {
		return fmt.Errorf("number %d instead of %d", got, w.Number)
	}
	return nil
}

// parseInotifyWatch reads
//
//	wd:3 ino:9e7e sdev:800013 mask:800afce ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:7e9e0000640d1b6d
func parseInotifyWatch(value string) (image.InotifyWatch, watchedFile, error) {
	var errs []error
	number := func(name string, base, size int) uint64 {
		word, _ := procfs.Word(value, name)
		n, err := strconv.ParseUint(word, base, size)
		errs = append(errs, err)
		return n
	}
	w := image.InotifyWatch{Number: int(number("wd", 10, 31)), Mask: uint32(number("mask", 16, 32)) & watchMask}
	device := number("sdev", 16, 32)
	inode := number("ino", 16, 64)
	kind := number("fhandle-type", 16, 32)
	word, _ := procfs.Word(value, "f_handle")
	raw, err := hex.DecodeString(word)
	if err := errors.Join(append(errs, err)...); err != nil {
		return w, watchedFile{}, fmt.Errorf("inotify watch %q: %w", value, err)
	}
	// The kernel's own coding of a device: 12 bits and 20 bits.
	device = unix.Mkdev(uint32(device>>20), uint32(device&(1<<20-1)))
	return w, watchedFile{device, inode, unix.NewFileHandle(int32(kind), raw)}, nil
}

// A watchedFile is the file of a watch as fdinfo names it.
type watchedFile struct {
	device, inode uint64
	handle        unix.FileHandle
}

// watchMask are the events that can be asked for; the kernel shows flags of its
// own beside them.
const watchMask = unix.IN_ALL_EVENTS | unix.IN_ONESHOT | unix.IN_EXCL_UNLINK

// path finds a path to the file by its handle on one of the mounts of its device
// (open_by_handle_at(2)). It is empty if there is none.
func (w watchedFile) path() string {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return ""
	}
	for _, point := range mountPoints(string(mounts), w.device) {
		mount, err := unix.Open(point, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			continue
		}
		fd, err := unix.OpenByHandleAt(mount, w.handle, unix.O_PATH|unix.O_CLOEXEC)
		unix.Close(mount)
		if err != nil {
			continue
		}
		path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
		unix.Close(fd)
		var st unix.Stat_t
		if err == nil && unix.Lstat(path, &st) == nil && st.Ino == w.inode {
			return path
		}
	}
	return ""
}

// unescape undoes what the kernel writes for characters that would be separators
// (mangle_path, fs/seq_file.c).
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`, `\043`, "#")

// mountPoints are where a device is mounted, by mountinfo (proc_pid_mountinfo(5)).
func mountPoints(mountinfo string, device uint64) []string {
	number := fmt.Sprintf("%d:%d", unix.Major(device), unix.Minor(device))
	var points []string
	for line := range strings.Lines(mountinfo) {
		if words := strings.Fields(line); len(words) >= 5 && words[2] == number {
			points = append(points, unescape.Replace(words[4]))
		}
	}
	return points
}
