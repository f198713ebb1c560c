package unixsock

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// needRoot also takes the thread for the test, so that it may change it.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	t.Parallel()
	runtime.LockOSThread() // for good: the thread ends with the goroutine
}

// enterNetwork gives the test's goroutine an empty network of its own, in which
// there are no other sockets and no other abstract names.
func enterNetwork(t *testing.T) {
	t.Helper()
	needRoot(t)
	check(t, unix.Unshare(unix.CLONE_NEWNET))
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func checkIs(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, not %v", what, err, want)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func newSocket(t *testing.T, typ int) int {
	t.Helper()
	fd := must(unix.Socket(unix.AF_UNIX, typ|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0))
	mine := new(int)
	sockets.Store(fd, mine)
	t.Cleanup(func() {
		if sockets.CompareAndDelete(fd, mine) {
			unix.Close(fd)
		}
	})
	return fd
}

// sockets are those that no test has closed yet: another test may have the number
// by now.
var sockets sync.Map

func closeSocket(t *testing.T, fd int) {
	t.Helper()
	sockets.Delete(fd)
	check(t, unix.Close(fd))
}

// bound is a socket whose name was given to it by nothing but bind(2).
func bound(t *testing.T, typ int, name string) int {
	t.Helper()
	fd := newSocket(t, typ)
	check(t, bind(fd, []byte(name)))
	return fd
}

func listening(t *testing.T, typ int, name string, backlog int) int {
	t.Helper()
	fd := bound(t, typ, name)
	check(t, unix.Listen(fd, backlog))
	return fd
}

func inode(fd int) uint32 {
	var st unix.Stat_t
	must(0, unix.Fstat(fd, &st))
	return uint32(st.Ino)
}

// nameOf is what getsockname(2) writes, without the family.
func nameOf(t *testing.T, fd int) string {
	t.Helper()
	// Of a name that fills sun_path the NUL behind it is told, too.
	var address struct {
		unix.RawSockaddrUnix
		nul [2]byte
	}
	size := uint32(unsafe.Sizeof(address))
	_, _, errno := unix.Syscall(unix.SYS_GETSOCKNAME, uintptr(fd), uintptr(unsafe.Pointer(&address)), uintptr(unsafe.Pointer(&size)))
	if errno != 0 {
		t.Fatal(errno)
	}
	return string(unsafe.Slice((*byte)(unsafe.Pointer(&address)), size)[2:])
}

// connect goes by a path of any length and any bytes.
func connect(t *testing.T, typ int, path string) (int, error) {
	t.Helper()
	file, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	check(t, err)
	defer unix.Close(file)
	fd := newSocket(t, typ)
	return fd, unix.Connect(fd, &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d", file)})
}

// reached reports whether what is sent to a path arrives at a socket, which
// listens if it is of a kind that does.
func reached(t *testing.T, typ int, path string, fd int) bool {
	t.Helper()
	client, err := connect(t, typ, path)
	check(t, err)
	defer closeSocket(t, client)
	if _, err := unix.Write(client, []byte("x")); err != nil {
		t.Fatal(err)
	}
	if typ == unix.SOCK_DGRAM {
		_, err = unix.Read(fd, make([]byte, 1))
	} else {
		var accepted int
		if accepted, _, err = unix.Accept4(fd, unix.SOCK_CLOEXEC); err == nil {
			unix.Close(accepted)
		}
	}
	if err != nil && !errors.Is(err, unix.EAGAIN) {
		t.Fatal(err)
	}
	return err == nil
}

// entries of a directory, those that are hidden, too.
func entries(t *testing.T, dir string) []string {
	t.Helper()
	all, err := os.ReadDir(dir)
	check(t, err)
	names := []string{}
	for _, e := range all {
		names = append(names, e.Name())
	}
	return names
}

func lookAt(t *testing.T, fd int) State {
	t.Helper()
	s, err := Look(inode(fd))
	check(t, err)
	return s
}
