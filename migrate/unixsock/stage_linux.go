package unixsock

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// stagePrefix begins the name of each staging directory.
const stagePrefix = ".pagurus-"

// A Staged says how a socket gets its name, and what there is to be undone. It is
// plain data; paths are bytes, as they need not be text that JSON can hold.
type Staged struct {
	Name []byte `json:"name,omitempty" cbor:"name,omitempty"` // as of State.Name
	// Dir is the directory in which Stage is made. Without it there is no file: the
	// name is abstract, or none.
	Dir   []byte `json:"dir,omitempty" cbor:"dir,omitempty"`
	Stage string `json:"stage,omitempty" cbor:"stage,omitempty"`
	// Base is what Publish calls the file, in Dir. Without it the file is removed
	// by Bind already.
	Base []byte `json:"base,omitempty" cbor:"base,omitempty"`
	// DirDevice and DirInode are of Dir, so that nobody puts another one in its place.
	DirDevice uint64 `json:"dir_device,omitempty" cbor:"dir_device,omitempty"`
	DirInode  uint64 `json:"dir_inode,omitempty" cbor:"dir_inode,omitempty"`
	// Device and Inode are of the socket's file, from Bind on.
	Device uint64 `json:"device,omitempty" cbor:"device,omitempty"`
	Inode  uint64 `json:"inode,omitempty" cbor:"inode,omitempty"`
}

// Plan says how a socket gets a name, whose file is to be where the name leads
// from the directory cwd. Nothing is made. A name that is abstract or empty needs
// no file. The error of a missing directory is fs.ErrNotExist, that of one in
// which nothing may be made unix.EROFS or fs.ErrPermission, that of a name that
// no socket can have fs.ErrInvalid.
func Plan(name []byte, cwd string) (Staged, error) {
	to := string(name)
	if !strings.HasPrefix(to, "/") {
		if !strings.HasPrefix(cwd, "/") && hasFile(name) {
			return Staged{}, planning(name, fmt.Errorf("it is relative to %q, which is no absolute path: %w", cwd, fs.ErrInvalid))
		}
		to = cwd + "/" + to // not path.Join, which takes "link/.." for nothing
	}
	return PlanAt(name, to)
}

// PlanAt is Plan for a file that is to be elsewhere than where the name leads, as
// File.Path tells of one that was renamed, or whose program has left the
// directory.
func PlanAt(name []byte, to string) (Staged, error) {
	s := Staged{Name: slices.Clone(name)}
	if !hasFile(name) {
		return s, nil
	}
	dir, base := path.Split(to)
	if !strings.HasPrefix(dir, "/") || base == "" || base == "." || base == ".." {
		return s, planning(name, fmt.Errorf("%q is no place for its file: %w", to, fs.ErrInvalid))
	}
	s.Base = []byte(base)
	return s, planning(name, s.in(dir))
}

// PlanUnlinked is Plan for a name that leads to no file, or to one of another
// socket. The file is made in the directory scratch, of any file system, and
// removed at once.
func PlanUnlinked(name []byte, scratch string) (Staged, error) {
	s := Staged{Name: slices.Clone(name)}
	if !hasFile(name) {
		return s, nil
	}
	return s, planning(name, s.in(scratch))
}

func planning(name []byte, err error) error {
	if err != nil {
		return fmt.Errorf("planning for a unix socket with the name %q: %w", name, err)
	}
	return nil
}

func hasFile(name []byte) bool { return len(name) > 0 && name[0] != 0 }

// in chooses the staging directory.
func (s *Staged) in(dir string) error {
	if _, _, err := walk(s.Name); err != nil {
		return err
	}
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening the directory %s: %w", dir, err)
	}
	defer unix.Close(fd)
	// The same one without links, which may lead elsewhere later.
	resolved, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return fmt.Errorf("looking for the directory %s: %w", dir, err)
	}
	var st, again unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("looking at the directory %s: %w", dir, err)
	}
	if err := unix.Stat(resolved, &again); err != nil {
		return fmt.Errorf("looking at the directory %s: %w", resolved, err) // removed
	}
	if st.Dev != again.Dev || st.Ino != again.Ino {
		return fmt.Errorf("the directory %s has no path: %w", dir, fs.ErrNotExist)
	}
	if err := unix.Faccessat(unix.AT_FDCWD, resolved, unix.W_OK|unix.X_OK, unix.AT_EACCESS); err != nil {
		return fmt.Errorf("making files in %s: %w", resolved, err)
	}
	s.Dir, s.DirDevice, s.DirInode = []byte(resolved), st.Dev, st.Ino
	s.Stage = stagePrefix + rand.Text()
	return nil
}

// walk says which directories the way along a name needs below the root on which
// it starts, the outer ones first, and where it makes the file.
func walk(name []byte) (dirs []string, file string, err error) {
	parts := strings.Split(string(name), "/")
	last := parts[len(parts)-1]
	switch {
	case len(name) > maxNameBytes:
		return nil, "", fmt.Errorf("it has %d bytes, more than %d: %w", len(name), maxNameBytes, fs.ErrInvalid)
	case bytes.IndexByte(name, 0) >= 0:
		return nil, "", fmt.Errorf("NUL ends a path: %w", fs.ErrInvalid)
	case last == "" || last == "." || last == "..":
		return nil, "", fmt.Errorf("it is that of a directory: %w", fs.ErrInvalid)
	}
	at := "."
	for _, part := range parts[:len(parts)-1] {
		switch part {
		case "", ".":
		case "..":
			at = path.Dir(at) // of the root the root
		default:
			if at = path.Join(at, part); !slices.Contains(dirs, at) {
				dirs = append(dirs, at)
			}
		}
	}
	file = path.Join(at, last)
	if slices.Contains(dirs, file) {
		// "x/../x", where x is a link: here it would have to be a directory and a socket.
		return nil, "", fmt.Errorf("it leads through its own last part: %w", errors.ErrUnsupported)
	}
	return dirs, file, nil
}

// Path is where Publish puts the file, "" if nowhere.
func (s Staged) Path() string {
	if len(s.Base) == 0 {
		return ""
	}
	return path.Join(string(s.Dir), string(s.Base))
}

// open opens Dir, if it still is that.
func (s Staged) open() (*os.Root, error) {
	root, err := os.OpenRoot(string(s.Dir))
	if err != nil {
		return nil, err
	}
	info, err := root.Stat(".")
	if err == nil {
		if st, ok := info.Sys().(*syscall.Stat_t); !ok || st.Dev != s.DirDevice || st.Ino != s.DirInode {
			err = fmt.Errorf("another directory is at %s by now: %w", s.Dir, fs.ErrNotExist)
		}
	}
	if err != nil {
		return nil, errors.Join(err, root.Close())
	}
	return root, nil
}

// Publish puts the file in its place, where it replaces another socket's, and
// removes the rest. From then on connections reach this socket. What is there
// already and no socket is left alone (fs.ErrExist). A second call after one that
// succeeded, or did so half, is no error; as long as Inode was not written down,
// any socket at the place is taken for that of the first one.
func (s Staged) Publish() error {
	if len(s.Base) == 0 {
		return s.Discard() // there is none
	}
	err := s.publish()
	if err == nil {
		err = s.remove()
	}
	if err != nil {
		return fmt.Errorf("putting a unix socket at %s: %w", s.Path(), err)
	}
	return nil
}

func (s Staged) publish() error {
	_, file, err := walk(s.Name)
	if err != nil {
		return err
	}
	root, err := s.open()
	if err != nil {
		return err
	}
	defer root.Close()
	there, err := root.Lstat(string(s.Base))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	from := path.Join(s.Stage, file)
	staged, err := root.Lstat(from)
	switch {
	case errors.Is(err, fs.ErrNotExist) && there != nil && s.is(there):
		return nil // by an earlier call
	case err != nil:
		return err
	case !s.is(staged):
		return fmt.Errorf("another file was put at %s: %w", from, fs.ErrExist)
	case there != nil && there.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("what is there is no socket: %w", fs.ErrExist)
	}
	return root.Rename(from, string(s.Base))
}

// is reports whether a file is the socket's, as far as that is known.
func (s Staged) is(info fs.FileInfo) bool {
	if info.Mode().Type() != fs.ModeSocket {
		return false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return s.Inode == 0 || ok && st.Dev == s.Device && st.Ino == s.Inode
}

// Discard removes what Bind has made and Publish has not used. It can be called at
// any time, and more than once. The socket keeps its name until it is closed.
func (s Staged) Discard() error {
	if err := s.remove(); err != nil {
		return fmt.Errorf("removing the staging directory %s: %w", path.Join(string(s.Dir), s.Stage), err)
	}
	return nil
}

func (s Staged) remove() error {
	if len(s.Dir) == 0 {
		return nil
	}
	root, err := os.OpenRoot(string(s.Dir))
	if leadsNowhere(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer root.Close()
	if _, err := root.Lstat(s.Stage); errors.Is(err, fs.ErrNotExist) {
		return nil // which RemoveAll would not say where nothing can be written
	}
	return root.RemoveAll(s.Stage)
}
