package unixsock

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestFileOf(t *testing.T) {
	needRoot(t)
	for _, dir := range []string{t.TempDir(), must(os.MkdirTemp("/dev/shm", "unixsock"))} { // the latter has no device
		defer os.RemoveAll(dir)
		name := dir + "/s"
		fd := listening(t, unix.SOCK_STREAM, name, 1)
		check(t, unix.Chown(name, 12, 34))
		check(t, unix.Chmod(name, 0o1751))
		var st unix.Stat_t
		check(t, unix.Stat(name, &st))
		want := File{Path: name, Device: st.Dev, Inode: st.Ino, Access: Access{Mode: 0o1751, UID: 12, GID: 34}}
		compare := func(what string, fd int) {
			t.Helper()
			if diff := cmp.Diff(want, must(FileOf(fd))); diff != "" {
				t.Errorf("%s: %s", what, diff)
			}
		}
		compare("bound", fd)
		if s := lookAt(t, fd); s.Device != want.Device || s.FileInode != uint32(want.Inode) {
			t.Errorf("sock_diag tells %#x, %d: %+v", s.Device, s.FileInode, want)
		}
		_, err := connect(t, unix.SOCK_STREAM, name)
		check(t, err)
		accepted, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
		check(t, err)
		compare("accepted", accepted)
		check(t, unix.Close(accepted))

		want.Path = dir + "/t (deleted)"
		check(t, os.Rename(name, want.Path))
		compare("renamed", fd)
		other := bound(t, unix.SOCK_DGRAM, dir+"/u")
		check(t, os.Rename(dir+"/u", want.Path))
		if f := must(FileOf(other)); f.Path != want.Path {
			t.Errorf("the other one is at %q", f.Path)
		}
		want.Path = ""
		compare("replaced", fd)
		check(t, os.Remove(dir+"/t (deleted)"))
		compare("removed", fd)
	}
	for _, fd := range []int{newSocket(t, unix.SOCK_STREAM), bound(t, unix.SOCK_STREAM, "\x00unixsock-file-test")} {
		_, err := FileOf(fd)
		checkIs(t, "without a file", err, fs.ErrNotExist)
	}
}

// makeFiles makes the files of two sockets, s and other; f is no socket, l leads
// to s, loop to itself, d is a directory.
func makeFiles(t *testing.T) (dir string, device, inode uint64) {
	t.Helper()
	dir = t.TempDir()
	bound(t, unix.SOCK_STREAM, dir+"/s")
	bound(t, unix.SOCK_STREAM, dir+"/other")
	check(t, os.WriteFile(dir+"/f", nil, 0o600))
	check(t, os.Symlink("s", dir+"/l"))
	check(t, os.Symlink("loop", dir+"/loop"))
	check(t, os.Mkdir(dir+"/d", 0o700))
	var st unix.Stat_t
	check(t, unix.Stat(dir+"/s", &st))
	return dir, st.Dev, st.Ino
}

func TestReaches(t *testing.T) {
	needRoot(t)
	dir, device, inode := makeFiles(t)
	for name, want := range map[string]bool{
		"s": true, "l": true, "d/../l": true, "other": false, "f": false, "d": false,
		"none": false, "none/s": false, "f/s": false, "loop": false, "s/": false,
	} {
		if got, err := Reaches(dir+"/"+name, device, inode); got != want || err != nil {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	for _, of := range [][2]uint64{{device + 1, inode}, {device, inode + 1<<32}} {
		if got, err := Reaches(dir+"/s", of[0], of[1]); got || err != nil {
			t.Errorf("it is taken for %v, %v", of, err)
		}
	}
	var st unix.Stat_t
	check(t, unix.Stat(dir+"/f", &st))
	if got, err := Reaches(dir+"/f", st.Dev, st.Ino); got || err != nil {
		t.Errorf("a file that is no socket: %v, %v", got, err)
	}
	_, err := Reaches(dir+"/"+strings.Repeat("x", 300), device, inode)
	checkIs(t, "a name that is too long", err, unix.ENAMETOOLONG)
}

func TestRemoveIfSame(t *testing.T) {
	needRoot(t)
	dir, device, inode := makeFiles(t)
	before := entries(t, dir)
	for _, name := range []string{"other", "f", "l", "d", "none", "none/s", "f/s", "loop/s", "s/"} {
		err := RemoveIfSame(dir+"/"+name, device, inode)
		if name == "loop/s" {
			checkIs(t, name, err, unix.ELOOP)
		} else if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, of := range [][2]uint64{{device + 1, inode}, {device, inode + 1}} {
		check(t, RemoveIfSame(dir+"/s", of[0], of[1]))
	}
	if diff := cmp.Diff(before, entries(t, dir)); diff != "" {
		t.Errorf("something was removed: %s", diff)
	}
	for range 2 {
		check(t, RemoveIfSame(filepath.Join(dir, "d")+"/../s", device, inode))
		if _, err := os.Lstat(dir + "/s"); err == nil {
			t.Error("it is still there")
		}
	}
	var st unix.Stat_t
	check(t, unix.Stat(dir+"/f", &st))
	check(t, RemoveIfSame(dir+"/f", st.Dev, st.Ino))
	if _, err := os.Lstat(dir + "/f"); err != nil {
		t.Errorf("a file that is no socket: %v", err)
	}
}
