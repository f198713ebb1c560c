package tcprepair

import (
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/tcprepair/inet/inettest"
)

// A listener takes connections at its new place, from Go's too.
func TestListeners(t *testing.T) {
	for _, f := range families {
		for _, protocol := range []int{unix.IPPROTO_TCP, unix.IPPROTO_MPTCP} {
			t.Run(fmt.Sprint(f.name, "/", protocol), func(t *testing.T) {
				inettest.EnterNetwork(t)
				listener := f.listen(t, protocol)
				before := must(unix.Getsockname(listener.fd))
				if err := unix.Fchown(listener.fd, 1234, 5678); err != nil {
					t.Fatal(err)
				}
				moved := listener.move()
				var st unix.Stat_t
				if err := unix.Fstat(moved.fd, &st); err != nil || st.Uid != 1234 || st.Gid != 5678 {
					t.Errorf("it belongs to %d, %d, %v", st.Uid, st.Gid, err)
				}
				if got := must(unix.GetsockoptInt(moved.fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)); got != protocol {
					t.Errorf("protocol %d instead of %d", got, protocol)
				}
				if s := must(Dump(moved.fd)); s.Backlog != testBacklog {
					t.Errorf("backlog %d", s.Backlog)
				}
				client := f.socket(t, unix.IPPROTO_TCP)
				if err := unix.Connect(client.fd, f.sockaddr(f.client, portOf(before))); err != nil {
					t.Fatal(err)
				}
				fd, _, err := unix.Accept4(moved.fd, unix.SOCK_CLOEXEC)
				if err != nil {
					t.Fatal(err)
				}
				server := end{t, fd}
				client.write("hello")
				if got := server.move().read(5); got != "hello" {
					t.Errorf("read %q", got)
				}
			})
		}
	}
}

// What a connection has left can be read when it has moved: data, then the end
// or the error, once.
func TestClosed(t *testing.T) {
	for _, f := range families {
		for c := range 4 {
			failed, early := c%2 == 1, c/2 == 1
			t.Run(fmt.Sprint(f.name, "/failed=", failed, "/early=", early), func(t *testing.T) {
				inettest.EnterNetwork(t)
				var ends []end
				for range 3 { // at the same port
					server, client := f.connect(t)
					client.write("left behind")
					if failed {
						if err := unix.SetsockoptLinger(client.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
							t.Fatal(err)
						}
					} else {
						client.shutdown()
						server.awaitState(CloseWait)
						server.shutdown()
					}
					client.close()
					server.awaitState(Closed)
					ends = append(ends, server)
				}
				var sockets []*Socket
				for i := range ends {
					var s *Socket
					s, ends[i] = ends[i].take(early)
					sockets = append(sockets, s)
				}
				for i, server := range ends {
					if err := Activate(server.fd, sockets[i]); err != nil {
						t.Fatal(err)
					}
					if got := server.read(len("left behind")); got != "left behind" {
						t.Errorf("read %q", got)
					}
					if failed {
						if _, err := readFrom(server.fd, make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
							t.Errorf("reading after the data: %v", err)
						}
					}
					server.readEnd()
					if _, err := unix.SendmsgN(server.fd, []byte("x"), nil, nil, unix.MSG_NOSIGNAL); err != unix.EPIPE {
						t.Errorf("writing: %v", err)
					}
				}
			})
		}
	}
}

// A socket that has never been connected can be.
func TestUnconnected(t *testing.T) {
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			inettest.EnterNetwork(t)
			listener := f.listen(t, unix.IPPROTO_TCP)
			client := f.socket(t, unix.IPPROTO_TCP)
			if err := unix.Bind(client.fd, f.sockaddr(f.client, 0)); err != nil {
				t.Fatal(err)
			}
			before := must(unix.Getsockname(client.fd))
			client = client.move()
			if after := must(unix.Getsockname(client.fd)); portOf(after) != portOf(before) {
				t.Errorf("port %d instead of %d", portOf(after), portOf(before))
			}
			if err := unix.Connect(client.fd, f.sockaddr(f.client, portOf(must(unix.Getsockname(listener.fd))))); err != nil {
				t.Fatal(err)
			}
		})
	}
}
