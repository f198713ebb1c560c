package procfs

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// The table says of each descriptor what the system calls do, and of a socket whose it is.
func TestDescriptorReader(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	reader, err := NewDescriptorReader()
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()

	var config net.ListenConfig
	config.SetMultipathTCP(false)
	l, err := config.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	socket, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	network, err := unix.GetsockoptUint64(int(socket.Fd()), unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Fchown(int(socket.Fd()), 17, 19); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(socket.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	// Numbers beyond the first word of the bitmap.
	again, err := unix.FcntlInt(socket.Fd(), unix.F_DUPFD_CLOEXEC, 130)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(again)
	open, err := unix.FcntlInt(socket.Fd(), unix.F_DUPFD, 130)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(open)
	owned, err := unix.Eventfd(0, unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(owned)

	table := func() map[int]Descriptor {
		byNumber := make(map[int]Descriptor)
		err := reader.Each(Process{PID: os.Getpid()}, func(d *Descriptor) error {
			d.TCP = bytes.Clone(d.TCP)
			byNumber[d.FD] = *d
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return byNumber
	}
	before := table()
	s := before[int(socket.Fd())]
	if s.Inode != st.Ino || s.Mode != st.Mode || s.UID != 17 || s.GID != 19 || s.Special || !s.CloExec || s.Network != network || len(s.TCP) == 0 {
		t.Errorf("%+v, and the network is %d, the inode %d", s, network, st.Ino)
	}
	if a, o := before[again], before[open]; !cmp.Equal(a.OpenFile, s.OpenFile) || !cmp.Equal(o.OpenFile, s.OpenFile) || !a.CloExec || o.CloExec {
		t.Errorf("duplicates of %+v are %+v and %+v", s, a, o)
	}
	e := before[owned]
	if e.TCP != nil || e.Network != 0 || e.Special || e.CloExec || e.Flags&unix.O_NONBLOCK == 0 {
		t.Errorf("%+v for an eventfd", e)
	}
	signals, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(signals)
	for _, set := range []func() error{
		func() error { _, err := unix.FcntlInt(uintptr(signals), unix.F_SETSIG, int(unix.SIGURG)); return err },
		func() error { _, err := unix.FcntlInt(uintptr(owned), unix.F_SETOWN, os.Getpid()); return err },
		func() error { return unix.Flock(int(socket.Fd()), unix.LOCK_EX) },
	} {
		if err := set(); err != nil {
			t.Fatal(err)
		}
	}
	after := table()
	if !after[owned].Special || !after[signals].Special || !after[open].Special {
		t.Errorf("%+v with an owner, %+v with a signal, %+v with a lock", after[owned], after[signals], after[open])
	}
}

// Without the program nothing is known, and nothing fails.
func TestNoDescriptorReader(t *testing.T) {
	for _, r := range []*DescriptorReader{nil, {}} {
		err := r.Each(Process{PID: os.Getpid()}, func(d *Descriptor) error { return fmt.Errorf("descriptor %d", d.FD) })
		if err != nil {
			t.Error(err)
		}
	}
}
