package unixsock

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// Bind gives the name to a socket, which may be connected. Its file gets the access
// asked for, and can be reached by nobody but root before Publish. An abstract
// name is there at once, in the socket's network namespace; the error of one that
// is in use is unix.EADDRINUSE. After an error nothing is left.
func (s *Staged) Bind(fd int, access Access) error {
	var err error
	switch {
	case len(s.Name) == 0:
		return nil
	case !hasFile(s.Name):
		err = bind(fd, s.Name)
	default:
		err = s.make(fd, access)
		if err != nil && !errors.Is(err, fs.ErrExist) || len(s.Base) == 0 { // what exists is an earlier call's
			err = errors.Join(err, s.remove())
		}
	}
	if err != nil {
		return fmt.Errorf("giving a unix socket the name %q: %w", s.Name, err)
	}
	return nil
}

// make makes the staging directory and the socket's file in it.
func (s *Staged) make(fd int, access Access) error {
	dirs, file, err := walk(s.Name)
	if err != nil {
		return err
	}
	root, err := s.open()
	if err != nil {
		return err
	}
	defer root.Close()
	if err := root.Mkdir(s.Stage, 0o700); err != nil {
		return err
	}
	stage, err := s.enter(root)
	if err != nil {
		return err
	}
	defer stage.Close()
	for _, dir := range dirs {
		if err := stage.Mkdir(dir, 0o700); err != nil {
			return err
		}
	}
	top, err := stage.Open(".")
	if err != nil {
		return err
	}
	defer top.Close()
	if err := bindBelow(int(top.Fd()), fd, s.Name); err != nil {
		return err
	}
	parent, err := stage.Open(path.Dir(file))
	if err != nil {
		return err
	}
	defer parent.Close()
	at, base := int(parent.Fd()), path.Base(file)
	// bind(2) made it with the permissions of the socket itself less the umask.
	// A change of the owner takes bits away, so the mode comes last (chown(2)).
	if err := unix.Fchownat(at, base, int(access.UID), int(access.GID), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("setting its owner: %w", err)
	}
	if err := unix.Fchmodat(at, base, access.Mode&0o7777, 0); err != nil {
		return fmt.Errorf("setting its mode: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Fstatat(at, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("looking at its file: %w", err)
	}
	s.Device, s.Inode = st.Dev, st.Ino
	return nil
}

// enter opens the staging directory. Whoever Dir belongs to can put another one in
// its place, but none of ours: below it nobody else can make links for us to
// follow.
func (s *Staged) enter(root *os.Root) (*os.Root, error) {
	stage, err := root.OpenRoot(s.Stage)
	if err != nil {
		return nil, err
	}
	info, err := stage.Stat(".")
	if err == nil {
		if st, ok := info.Sys().(*syscall.Stat_t); !ok || int(st.Uid) != os.Geteuid() || st.Mode&0o077 != 0 {
			err = fmt.Errorf("the directory %s is not what was made: %w", s.Stage, fs.ErrPermission)
		}
	}
	if err != nil {
		return nil, errors.Join(err, stage.Close())
	}
	return stage, nil
}

// bindBelow calls bind(2) on a thread whose root is the directory.
func bindBelow(dir, fd int, name []byte) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		result <- bindFromRoot(dir, fd, name)
	}()
	return <-result
}

// bindFromRoot parts this thread's root from that of the others. Both its root
// and its working directory are afterwards what they were: the program's first
// thread does not end, and is the one that /proc/PID tells of.
func bindFromRoot(dir, fd int, name []byte) error {
	var was [2]int // root and working directory
	for i, path := range []string{"/", "."} {
		old, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("opening the own root: %w", err)
		}
		defer unix.Close(old)
		was[i] = old
	}
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("parting from the root of the other threads: %w", err)
	}
	err := enterRoot(dir)
	if err == nil {
		err = bind(fd, name)
	}
	if err := errors.Join(enterRoot(was[0]), unix.Fchdir(was[1])); err != nil {
		return fmt.Errorf("going back to the own root: %w", err)
	}
	return err
}

func enterRoot(dir int) error {
	if err := unix.Fchdir(dir); err != nil {
		return err
	}
	return unix.Chroot(".")
}
