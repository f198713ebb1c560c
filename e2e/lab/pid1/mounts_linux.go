package pid1

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// own are the file systems that each host has for itself, in the order in
// which they are mounted. /proc comes first: laying a tmpfs over a directory
// (mountPoint) goes through /proc/self/fd.
var own = []struct {
	path, kind, options string
	flags               uintptr
}{
	{"/proc", "proc", "", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
	// A sysfs shows the devices of the network namespace that mounts it.
	{"/sys", "sysfs", "", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
	{"/sys/fs/cgroup", "cgroup2", "", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
	{"/run", "tmpfs", "mode=755", unix.MS_NOSUID | unix.MS_NODEV},
	// The one that machines lack: it comes first of those in /dev, see mountPoint.
	{"/dev/mqueue", "mqueue", "", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
	{"/dev/shm", "tmpfs", "mode=1777", unix.MS_NOSUID | unix.MS_NODEV},
	// Since Linux 4.7 every devpts is a new instance, and opening /dev/ptmx
	// looks for the one on pts beside it (devpts.rst). Group 5 is tty.
	{"/dev/pts", "devpts", "mode=620,ptmxmode=666,gid=5", unix.MS_NOSUID | unix.MS_NOEXEC},
	{"/srv/local", "tmpfs", "mode=755", unix.MS_NOSUID | unix.MS_NODEV},
}

// mountOwn gives the host its own file systems. Everything else stays the
// machine's.
func mountOwn() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("cutting off mount propagation: %w", err)
	}
	for _, m := range own {
		// Away with the machine's own: nothing is left mounted on it then.
		for unix.Unmount(m.path, unix.MNT_DETACH) == nil {
		}
	}
	for _, m := range own {
		if err := mountPoint(m.path); err != nil {
			return fmt.Errorf("making a mount point of %s: %w", m.path, err)
		}
		if err := unix.Mount(m.kind, m.path, m.kind, m.flags, m.options); err != nil {
			if errors.Is(err, unix.ENODEV) {
				return fmt.Errorf("mounting %s: this kernel has no %s: %w", m.path, m.kind, err)
			}
			return fmt.Errorf("mounting %s: %w", m.path, err)
		}
	}
	// Programs expect it; it is world-writable on every distribution.
	if err := os.Mkdir("/run/lock", 0o777); err != nil {
		return err
	}
	return os.Chmod("/run/lock", 0o777|fs.ModeSticky)
}

// mountPoint makes sure that path is a directory. Where the machine has none,
// its parent is covered by a tmpfs that holds the parent's own content and the
// directory, since nothing may be made on the machine's file system.
func mountPoint(path string) error {
	switch info, err := os.Stat(path); {
	case err == nil && info.IsDir():
		return nil
	case err == nil:
		return unix.ENOTDIR
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	parent := filepath.Dir(path)
	if info, err := os.Stat(parent); err != nil || !info.IsDir() {
		return fmt.Errorf("%s is not a directory: make it first", parent)
	}
	if err := cover(parent); err != nil {
		return fmt.Errorf("covering %s: %w", parent, err)
	}
	return os.Mkdir(path, 0o755)
}

// cover mounts a tmpfs on dir and shows in it what dir holds: directories and
// files by bind mounts, device nodes and symbolic links as copies.
func cover(dir string) error {
	below, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer below.Close()
	info, err := below.Stat()
	if err != nil {
		return err
	}
	entries, err := below.ReadDir(-1)
	if err != nil {
		return err
	}
	mode := fmt.Sprintf("mode=%o", info.Mode().Perm())
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID, mode); err != nil {
		return err
	}
	// What is covered is still reached through the open directory.
	covered := fmt.Sprintf("/proc/self/fd/%d", below.Fd())
	for _, e := range entries {
		if err := show(filepath.Join(covered, e.Name()), filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("showing %s: %w", e.Name(), err)
		}
	}
	return nil
}

// show makes to another appearance of from.
func show(from, to string) error {
	var st unix.Stat_t
	if err := unix.Lstat(from, &st); err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		target, err := os.Readlink(from)
		if err != nil {
			return err
		}
		return os.Symlink(target, to)
	case unix.S_IFCHR, unix.S_IFBLK:
		if err := unix.Mknod(to, st.Mode&unix.S_IFMT, int(st.Rdev)); err != nil {
			return err
		}
		if err := unix.Chown(to, int(st.Uid), int(st.Gid)); err != nil {
			return err
		}
		return unix.Chmod(to, st.Mode&0o7777) // mknod(2) applies the umask
	case unix.S_IFDIR:
		if err := os.Mkdir(to, 0o755); err != nil {
			return err
		}
	default:
		if err := os.WriteFile(to, nil, 0o644); err != nil {
			return err
		}
	}
	return unix.Mount(from, to, "", unix.MS_BIND|unix.MS_REC, "")
}
