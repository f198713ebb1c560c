package unixsock

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// An Access says who may connect to a socket by its file: who may write it.
type Access struct {
	Mode uint32 // permissions, as of chmod(2)
	UID  uint32
	GID  uint32
}

// A File is what bind(2) made of a path.
type File struct {
	// Path leads to it, whatever the socket's name says: the file may have been
	// renamed, and a relative name is of a directory that the program may have left.
	// It is empty if there is no such path for this process: the file was removed,
	// say, or another one put in its place.
	Path          string
	Device, Inode uint64 // of stat(2)
	Access
}

// FileOf looks at the file of a socket, also of one that was accepted, whose file
// is its listener's. It needs CAP_NET_ADMIN. Without a file (an abstract name, or
// none) the error is fs.ErrNotExist.
func FileOf(fd int) (File, error) {
	// A descriptor with O_PATH of the very dentry (unix_open_file, net/unix/af_unix.c).
	file, err := unix.IoctlRetInt(fd, siocUnixFile)
	if err != nil {
		return File{}, fmt.Errorf("asking for the file of a unix socket: %w", err)
	}
	defer unix.Close(file)
	var st unix.Stat_t
	if err := unix.Fstat(file, &st); err != nil {
		return File{}, fmt.Errorf("looking at the file of a unix socket: %w", err)
	}
	f := File{Device: st.Dev, Inode: st.Ino, Access: Access{Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid}}
	// Of a removed one the link says so behind the path, of one in another mount
	// namespace it tells the path there (d_path, fs/d_path.c): only trying tells.
	path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", file))
	if err != nil {
		return File{}, fmt.Errorf("looking for the file of a unix socket: %w", err)
	}
	if reaches, err := Reaches(path, f.Device, f.Inode); err == nil && reaches {
		f.Path = path
	}
	return f, nil
}

// Reaches reports whether a path leads to this file of a socket at present, as
// connect(2) takes it, which follows links (unix_find_bsd, net/unix/af_unix.c).
func Reaches(path string, device, inode uint64) (bool, error) {
	var st unix.Stat_t
	err := unix.Stat(path, &st)
	switch {
	case leadsNowhere(err) || errors.Is(err, unix.ELOOP):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("looking where %s leads: %w", path, err)
	}
	return isSocket(&st, device, inode), nil
}

// RemoveIfSame removes a socket's file, but not another one that has come to
// stand in its place. No call removes a file by what it is: one that is renamed
// to the path between the look and the removal goes. While the socket is open no
// other file gets its inode; on a file system of another host (NFS) it may.
func RemoveIfSame(path string, device, inode uint64) error {
	dir, base := filepath.Split(path)
	if dir == "" {
		dir = "."
	}
	wrap := func(err error) error {
		if err == nil || leadsNowhere(err) {
			return nil // as it is to be
		}
		return fmt.Errorf("removing the socket %s: %w", path, err)
	}
	parent, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return wrap(err)
	}
	defer unix.Close(parent)
	var st unix.Stat_t
	if err := unix.Fstatat(parent, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return wrap(err)
	}
	if !isSocket(&st, device, inode) {
		return nil
	}
	return wrap(unix.Unlinkat(parent, base, 0))
}

func leadsNowhere(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR)
}

func isSocket(st *unix.Stat_t, device, inode uint64) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFSOCK && st.Dev == device && st.Ino == inode
}
