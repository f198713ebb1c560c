package unixsock

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A socket is reached by a descriptor whatever its name leads to, and by its name if that is
// abstract.
func TestConnectTo(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	path := filepath.Join(t.TempDir(), "s")
	for name, bound := range map[string]func(fd int) error{
		"file":     func(fd int) error { return bind(fd, []byte(path)) },
		"abstract": func(fd int) error { return bind(fd, []byte("\x00pagurus-test\x00connect")) },
		"removed": func(fd int) error {
			s, err := PlanUnlinked([]byte(path+"2"), os.TempDir())
			if err == nil {
				err = s.Bind(fd, Access{})
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			open := func() int {
				fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { unix.Close(fd) })
				return fd
			}
			to, from := open(), open()
			if err := bound(to); err != nil {
				t.Fatal(err)
			}
			if err := ConnectTo(from, to); err != nil {
				t.Fatal(err)
			}
			if _, err := unix.Write(from, []byte("hello")); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 10)
			if n, err := unix.Read(to, buf); err != nil || string(buf[:n]) != "hello" {
				t.Errorf("%q, %v", buf[:max(n, 0)], err)
			}
			if err := Disconnect(from); err != nil {
				t.Fatal(err)
			}
			if _, err := unix.Write(from, []byte("hello")); err == nil {
				t.Error("it is connected still")
			}
			if err := ConnectTo(open(), from); err == nil {
				t.Error("connected to a socket without a name")
			}
		})
	}
}
