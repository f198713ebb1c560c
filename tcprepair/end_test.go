package tcprepair

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// An end is one end of a connection, with system calls for its methods: Go's own
// would move the sockets into its poller.
type end struct {
	t  *testing.T
	fd int
}

// netFamily is what a connection is made of.
type netFamily struct {
	name   string
	server string // where the server listens
	client string // where the client connects to
}

var families = []netFamily{
	{"IPv4", "127.0.0.1", "127.0.0.1"},
	{"IPv6", "::1", "::1"},
	{"mapped", "::", "::ffff:127.0.0.1"},
}

// connect makes a connection and returns its ends, the server's first.
func (f netFamily) connect(t *testing.T) (server, client end) {
	t.Helper()
	listener := f.listen(t, unix.IPPROTO_TCP)
	client = f.socket(t, unix.IPPROTO_TCP)
	name, err := unix.Getsockname(listener.fd)
	if err != nil {
		t.Fatal(err)
	}
	to := f.sockaddr(f.client, portOf(name))
	if err := unix.Connect(client.fd, to); err != nil {
		t.Fatalf("connecting: %v", err)
	}
	fd, _, err := unix.Accept4(listener.fd, unix.SOCK_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	server = end{t, fd}
	listener.close()
	return server, client
}

// testBacklog is the backlog of all listeners.
const testBacklog = 77

func (f netFamily) listen(t *testing.T, protocol int) end {
	t.Helper()
	l := f.socket(t, protocol)
	if err := unix.Bind(l.fd, f.sockaddr(f.server, 0)); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(l.fd, testBacklog); err != nil {
		t.Fatal(err)
	}
	return l
}

func (f netFamily) socket(t *testing.T, protocol int) end {
	t.Helper()
	domain := unix.AF_INET6
	if f.name == "IPv4" {
		domain = unix.AF_INET
	}
	fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		t.Fatal(err)
	}
	e := end{t, fd}
	// Nothing may hang.
	second := unix.Timeval{Sec: 5}
	for _, name := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, name, &second); err != nil {
			t.Fatal(err)
		}
	}
	return e
}

func (f netFamily) sockaddr(host string, port int) unix.Sockaddr {
	addr := netip.MustParseAddr(host)
	if f.name == "IPv4" {
		return &unix.SockaddrInet4{Addr: addr.As4(), Port: port}
	}
	return &unix.SockaddrInet6{Addr: addr.As16(), Port: port}
}

func portOf(sa unix.Sockaddr) int {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return sa.Port
	case *unix.SockaddrInet6:
		return sa.Port
	}
	return 0
}

func (e end) close() {
	e.t.Helper()
	if err := unix.Close(e.fd); err != nil {
		e.t.Fatal(err)
	}
}

func (e end) shutdown() {
	e.t.Helper()
	if err := unix.Shutdown(e.fd, unix.SHUT_WR); err != nil {
		e.t.Fatal(err)
	}
}

func (e end) write(text string) {
	e.t.Helper()
	for text != "" {
		n, err := writeTo(e.fd, []byte(text))
		if err != nil {
			e.t.Fatalf("writing: %v", err)
		}
		text = text[n:]
	}
}

// read reads n bytes.
func (e end) read(n int) string {
	e.t.Helper()
	got := make([]byte, 0, n)
	for len(got) < n {
		some := make([]byte, n-len(got))
		k, err := readFrom(e.fd, some)
		if err != nil {
			e.t.Fatalf("reading, after %d of %d bytes: %v", len(got), n, err)
		}
		if k == 0 {
			e.t.Fatalf("end after %d of %d bytes", len(got), n)
		}
		got = append(got, some[:k]...)
	}
	return string(got)
}

// readEnd expects the peer's FIN.
func (e end) readEnd() {
	e.t.Helper()
	if n, err := readFrom(e.fd, make([]byte, 1)); n != 0 || err != nil {
		e.t.Fatalf("reading the end: %d, %v", n, err)
	}
}
