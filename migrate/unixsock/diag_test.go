package unixsock

import (
	"encoding/binary"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"
)

func TestLook(t *testing.T) {
	enterNetwork(t)
	dir := t.TempDir()
	full := filepath.Join(dir, "p")
	full += strings.Repeat("p", maxNameBytes-len(full))
	file := func(name string) (s State) {
		var st unix.Stat_t
		check(t, unix.Stat(name, &st))
		return State{Name: []byte(name), HasFile: true, Device: st.Dev, FileInode: uint32(st.Ino)}
	}
	for name, tt := range map[string]struct {
		fd   int
		want func() State
	}{
		"new":      {newSocket(t, unix.SOCK_STREAM), func() State { return State{Type: unix.SOCK_STREAM, Status: Closed} }},
		"abstract": {bound(t, unix.SOCK_DGRAM, "\x00a\x00"), func() State { return State{Type: unix.SOCK_DGRAM, Status: Closed, Name: []byte("\x00a\x00")} }},
		"empty":    {bound(t, unix.SOCK_DGRAM, "\x00"), func() State { return State{Type: unix.SOCK_DGRAM, Status: Closed, Name: []byte("\x00")} }},
		"full":     {bound(t, unix.SOCK_DGRAM, full), func() State { s := file(full); s.Type, s.Status = unix.SOCK_DGRAM, Closed; return s }},
		"bound": {bound(t, unix.SOCK_SEQPACKET, dir+"/b"), func() State {
			s := file(dir + "/b")
			s.Type, s.Status = unix.SOCK_SEQPACKET, Closed
			return s
		}},
		"listening": {listening(t, unix.SOCK_STREAM, dir+"/l", 17), func() State {
			s := file(dir + "/l")
			s.Type, s.Status, s.Backlog = unix.SOCK_STREAM, Listening, 17
			return s
		}},
		"packets": {listening(t, unix.SOCK_SEQPACKET, "\x00q", 0), func() State {
			return State{Type: unix.SOCK_SEQPACKET, Status: Listening, Name: []byte("\x00q")}
		}},
	} {
		want := tt.want()
		want.Inode = inode(tt.fd)
		if diff := cmp.Diff(want, lookAt(t, tt.fd)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	fd := newSocket(t, unix.SOCK_DGRAM)
	check(t, unix.Fchown(fd, 4711, -1))
	if s := lookAt(t, fd); s.UID != 4711 {
		t.Errorf("user %d", s.UID)
	}
	gone := inode(fd)
	closeSocket(t, fd)
	_, err := Look(gone)
	checkIs(t, "a socket that was closed", err, fs.ErrNotExist)
}

func TestLookAtPair(t *testing.T) {
	enterNetwork(t)
	pair := must(unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0))
	defer unix.Close(pair[0])
	if s := lookAt(t, pair[0]); s.Status != Connected || !s.HasPeer || s.Peer != inode(pair[1]) || s.Shutdown != 0 {
		t.Errorf("connected: %+v", s)
	}
	check(t, unix.Shutdown(pair[0], unix.SHUT_WR))
	if a, b := lookAt(t, pair[0]), lookAt(t, pair[1]); a.Shutdown != 2 || b.Shutdown != 1 {
		t.Errorf("shut down: %+v, %+v", a, b)
	}
	must(unix.Write(pair[1], []byte("some")))
	if a, b := lookAt(t, pair[0]), lookAt(t, pair[1]); a.Received != 4 || a.Sent != 0 || b.Received != 0 || b.Sent < 4 {
		t.Errorf("something sent: %+v, %+v", a, b)
	}
	check(t, unix.Close(pair[1]))
	if s := lookAt(t, pair[0]); s.Status != Connected || !s.HasPeer || s.Peer != 0 || s.Shutdown != 3 {
		t.Errorf("without the other end: %+v", s)
	}
}

// What waits in a listener is told by its clients.
func TestPending(t *testing.T) {
	enterNetwork(t)
	name := t.TempDir() + "/s"
	for _, typ := range []int{unix.SOCK_STREAM, unix.SOCK_SEQPACKET} {
		l := listening(t, typ, name, 5)
		var clients [3]int
		for i := range clients {
			fd, err := connect(t, typ, name)
			check(t, err)
			clients[i] = fd
		}
		inodes := []uint32{inode(clients[0]), inode(clients[1]), inode(clients[2])}
		if s := lookAt(t, l); s.Waiting != 3 || s.Backlog != 5 || !slices.Equal(s.Pending, inodes) || s.PendingCut {
			t.Errorf("three wait (%v): %+v", inodes, s)
		}
		if s := lookAt(t, clients[0]); s.Status != Connected || !s.HasPeer || s.Peer != 0 || s.Shutdown != 0 {
			t.Errorf("a client that waits: %+v", s)
		}
		closeSocket(t, clients[1])
		if s := lookAt(t, l); s.Waiting != 3 || !slices.Equal(s.Pending, []uint32{inodes[0], 0, inodes[2]}) {
			t.Errorf("one of them was closed (%v): %+v", inodes, s)
		}
		accepted, _, err := unix.Accept4(l, unix.SOCK_CLOEXEC)
		check(t, err)
		if s := lookAt(t, l); s.Waiting != 2 || !slices.Equal(s.Pending, []uint32{0, inodes[2]}) {
			t.Errorf("one was accepted (%v): %+v", inodes, s)
		}
		if s := lookAt(t, clients[0]); s.Peer != inode(accepted) {
			t.Errorf("a client that was accepted: %+v", s)
		}
		if s, ls := lookAt(t, accepted), lookAt(t, l); s.Status != Connected || s.Peer != inodes[0] ||
			string(s.Name) != name || !s.HasFile || s.Device != ls.Device || s.FileInode != ls.FileInode {
			t.Errorf("what was accepted: %+v", s)
		}
		check(t, unix.Close(accepted))
		closeSocket(t, l)
		check(t, unix.Unlink(name))
	}
}

// More than fit into the kernel's answer, also where it lists all.
func TestPendingCut(t *testing.T) {
	enterNetwork(t)
	const many = 4000
	l := listening(t, unix.SOCK_STREAM, "\x00many", many)
	for range many {
		fd := must(unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0))
		check(t, unix.Connect(fd, &unix.SockaddrUnix{Name: "@many"}))
		check(t, unix.Close(fd))
	}
	const others = 300 // which stand before and behind it
	for range others {
		newSocket(t, unix.SOCK_DGRAM)
	}
	if s := lookAt(t, l); s.Waiting != many || !s.PendingCut || s.Pending != nil {
		t.Errorf("%d wait: %+v", many, s)
	}
	all, err := List()
	check(t, err)
	if len(all) != 1+others {
		t.Errorf("%d sockets of %d are listed", len(all), 1+others)
	}
	for range many {
		fd, _, err := unix.Accept4(l, unix.SOCK_CLOEXEC)
		check(t, err)
		check(t, unix.Close(fd))
	}
	if s := lookAt(t, l); s.Waiting != 0 || s.PendingCut {
		t.Errorf("none waits: %+v", s)
	}
}

func TestList(t *testing.T) {
	enterNetwork(t)
	name := t.TempDir() + "/s"
	receiver := bound(t, unix.SOCK_DGRAM, name)
	first, err := connect(t, unix.SOCK_DGRAM, name)
	check(t, err)
	second, err := connect(t, unix.SOCK_DGRAM, name)
	check(t, err)
	l := listening(t, unix.SOCK_STREAM, "\x00l", 1)
	client := newSocket(t, unix.SOCK_STREAM)
	check(t, unix.Connect(client, &unix.SockaddrUnix{Name: "@l"}))
	alone := newSocket(t, unix.SOCK_DGRAM)

	all, err := List()
	check(t, err)
	var want []State
	for _, fd := range []int{receiver, first, second, l, client, alone} {
		want = append(want, lookAt(t, fd))
	}
	byInode := cmpopts.SortSlices(func(a, b State) bool { return a.Inode < b.Inode })
	if diff := cmp.Diff(want, all, byInode); diff != "" {
		t.Error(diff)
	}
	for _, s := range all {
		switch s.Inode {
		case inode(receiver):
			if s.Status != Connected || s.HasPeer {
				t.Errorf("a datagram socket that others are connected to: %+v", s)
			}
		case inode(first), inode(second):
			if s.Peer != inode(receiver) {
				t.Errorf("a datagram socket that is connected: %+v", s)
			}
		case inode(l):
			if !slices.Equal(s.Pending, []uint32{inode(client)}) {
				t.Errorf("a listener: %+v", s)
			}
		}
	}
}

// MKDEV(259, 0x12345) is one that stat(2) takes apart.
func TestDevice(t *testing.T) {
	if got, want := device(259<<20|0x12345), unix.Mkdev(259, 0x12345); got != want || got != 0x12310345 {
		t.Errorf("%#x, not %#x", got, want)
	}
}

// answer is what the kernel sends, with these attributes.
func answer(attributes ...[]byte) []byte {
	b := []byte{unix.AF_UNIX, unix.SOCK_STREAM, byte(Listening), 0, 1, 2, 0, 0, 9, 9, 9, 9, 9, 9, 9, 9}
	for _, a := range attributes {
		b = append(b, a...)
		for len(b)%4 != 0 {
			b = append(b, 0)
		}
	}
	return b
}

func attribute(typ uint16, data ...byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(4+len(data)))
	return append(binary.NativeEndian.AppendUint16(b, typ), data...)
}

func TestParse(t *testing.T) {
	for name, tt := range map[string]struct {
		data []byte
		want State
		ok   bool
	}{
		"nothing":         {nil, State{}, false},
		"short":           {answer()[:15], State{}, false},
		"of a family":     {append([]byte{unix.AF_INET}, answer()[1:]...), State{}, false},
		"bare":            {answer(), State{}, true},
		"path":            {answer(attribute(unixDiagName, []byte("/a\x00")...)), State{Name: []byte("/a")}, true},
		"no NUL":          {answer(attribute(unixDiagName, []byte("/a")...)), State{Name: []byte("/a")}, true},
		"abstract":        {answer(attribute(unixDiagName, []byte("\x00a\x00")...)), State{Name: []byte("\x00a\x00")}, true},
		"only NUL":        {answer(attribute(unixDiagName, 0)), State{Name: []byte("\x00")}, true},
		"file":            {answer(attribute(unixDiagVFS, 7, 0, 0, 0, 2, 0, 0x10, 0)), State{HasFile: true, FileInode: 7, Device: unix.Mkdev(1, 2)}, true},
		"half a file":     {answer(attribute(unixDiagVFS, 7, 0, 0, 0)), State{}, false},
		"peer":            {answer(attribute(unixDiagPeer, 5, 0, 0, 0)), State{HasPeer: true, Peer: 5}, true},
		"peer gone":       {answer(attribute(unixDiagPeer, 0, 0, 0, 0)), State{HasPeer: true}, true},
		"half a peer":     {answer(attribute(unixDiagPeer, 5, 0)), State{}, false},
		"pending":         {answer(attribute(unixDiagIcons, 5, 0, 0, 0, 0, 0, 0, 0)), State{Pending: []uint32{5, 0}}, true},
		"none pending":    {answer(attribute(unixDiagIcons)), State{}, true},
		"half pending":    {answer(attribute(unixDiagIcons, 5, 0, 0, 0, 0, 0)), State{}, false},
		"queue":           {answer(attribute(unixDiagRqlen, 1, 0, 0, 0, 2, 0, 0, 0)), State{Waiting: 1, Backlog: 2}, true},
		"long queue":      {answer(attribute(unixDiagRqlen, make([]byte, 12)...)), State{}, false},
		"shut down":       {answer(attribute(unixDiagShutdown, 3)), State{Shutdown: 3}, true},
		"user":            {answer(attribute(unixDiagUID, 1, 2, 0, 0)), State{UID: 513}, true},
		"unknown":         {answer(attribute(99, 1, 2, 3), attribute(unixDiagShutdown, 1)), State{Shutdown: 1}, true},
		"cut":             {append(answer(attribute(unixDiagShutdown, 1)), 8, 0, 2), State{}, false},
		"beyond the end":  {append(answer(), 200, 0, 0, 0, 1), State{}, false},
		"without a start": {append(answer(), 3, 0, 0, 0), State{}, false},
	} {
		if tt.ok {
			tt.want.Type, tt.want.Status, tt.want.Inode = unix.SOCK_STREAM, Listening, 513
		}
		got, err := parse(tt.data)
		if diff := cmp.Diff(tt.want, got); diff != "" || (err == nil) != tt.ok {
			t.Errorf("%s: %v %s", name, err, diff)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(answer(attribute(unixDiagName, []byte("/a\x00")...), attribute(unixDiagVFS, make([]byte, 8)...), attribute(unixDiagPeer, 1, 0, 0, 0)))
	f.Add(answer(attribute(unixDiagIcons, make([]byte, 12)...), attribute(unixDiagRqlen, make([]byte, 8)...), attribute(unixDiagShutdown, 3)))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := parse(data)
		if err != nil && !cmp.Equal(s, State{}) {
			t.Errorf("%+v and %v", s, err)
		}
		if err == nil && (len(s.Name) > len(data) || 4*len(s.Pending) > len(data)) {
			t.Errorf("%+v of %d bytes", s, len(data))
		}
	})
}
