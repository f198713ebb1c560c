package tcprepair

import (
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/tcprepair/inet/inettest"
)

// noise is text that differs everywhere.
func noise(n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte('a' + rand.IntN(26))
	}
	return string(b)
}

// stuff writes until the end's send buffer is full, and returns what it holds.
func (e end) stuff() string {
	e.t.Helper()
	var all string
	for {
		some := noise(64 << 10)
		n, err := unix.SendmsgN(e.fd, []byte(some), nil, nil, unix.MSG_DONTWAIT)
		if err == unix.EAGAIN {
			return all
		}
		if err != nil {
			e.t.Fatalf("writing: %v", err)
		}
		all += some[:n]
	}
}

// Both queues full, the peer's window closed: everything arrives in order,
// what was not sent yet too, and in FIN-WAIT-1 the end behind it.
func TestFullQueues(t *testing.T) {
	for _, f := range families {
		for _, shut := range []bool{false, true} {
			name := f.name
			if shut {
				name += "/shut"
			}
			t.Run(name, func(t *testing.T) {
				inettest.EnterNetwork(t)
				server, client := f.connect(t)
				toServer, toClient := client.stuff(), server.stuff()
				if shut {
					server.shutdown()
				}
				hear := client.deaf()
				s, moved := server.take(true)
				if s.Unsent == 0 || len(s.Receive.Data) == 0 || s.FINUnsent != shut {
					t.Errorf("%d bytes received, %d of %d unsent, FIN unsent %v", len(s.Receive.Data), s.Unsent, len(s.Send.Data), s.FINUnsent)
				}
				hear()
				if err := Activate(moved.fd, s); err != nil {
					t.Fatal(err)
				}
				if toServer != moved.read(len(toServer)) {
					t.Error("the server reads something else")
				}
				if toClient != client.read(len(toClient)) {
					t.Error("the client reads something else")
				}
				if shut {
					client.readEnd()
				}
			})
		}
	}
}

// Sequence numbers wrap around in both queues.
func TestWrapAround(t *testing.T) {
	f := families[0]
	inettest.EnterNetwork(t)
	server, client := f.connect(t)
	a, err := Dump(server.fd)
	if err != nil {
		t.Fatal(err)
	}
	b, err := Dump(client.fd)
	if err != nil {
		t.Fatal(err)
	}
	shift := -a.Send.Seq - 1000
	for _, seq := range []*uint32{&a.Send.Seq, &b.Receive.Seq, &b.Window.SendWL1, &b.Window.ReceiveWindowT} {
		*seq += shift
	}
	shift = -b.Send.Seq - 1000
	for _, seq := range []*uint32{&b.Send.Seq, &a.Receive.Seq, &a.Window.SendWL1, &a.Window.ReceiveWindowT} {
		*seq += shift
	}
	var ends []end
	for _, e := range []end{server, client} {
		if err := Discard(e.fd); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range []*Socket{a, b} {
		fd, err := Restore(s, false)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.SetNonblock(fd, false); err != nil {
			t.Fatal(err)
		}
		ends = append(ends, end{t, fd})
	}
	for i, s := range []*Socket{a, b} {
		if err := Activate(ends[i].fd, s); err != nil {
			t.Fatal(err)
		}
	}
	server, client = ends[0], ends[1]
	for range 5 {
		hear := client.deaf()
		toClient, toServer := noise(700), noise(700)
		server.write(toClient)
		client.write(toServer)
		s, moved := server.take(true)
		hear()
		if err := Activate(moved.fd, s); err != nil {
			t.Fatal(err)
		}
		server = moved
		if diff := cmp.Diff(toServer, server.read(len(toServer))); diff != "" {
			t.Errorf("the server reads (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(toClient, client.read(len(toClient))); diff != "" {
			t.Errorf("the client reads (-want +got):\n%s", diff)
		}
	}
}

// A connection that was only looked at goes on as if nothing had been.
func TestResume(t *testing.T) {
	for _, f := range families {
		for _, c := range stateCases {
			t.Run(f.name+"/"+c.state.String(), func(t *testing.T) {
				inettest.EnterNetwork(t)
				server, client := f.connect(t)
				server.write("before")
				client.write("before")
				then := c.enter(server, client)
				server.awaitState(c.state)
				for range 3 {
					s, err := Dump(server.fd)
					if err != nil {
						t.Fatal(err)
					}
					if err := Resume(server.fd, s); err != nil {
						t.Fatal(err)
					}
				}
				then()
				if c.serverWrites {
					server.write(" after")
					client.read(len("before after"))
				}
				if c.clientWrites {
					client.write(" after")
					server.read(len("before after"))
				}
			})
		}
	}
}

// Where a program looks from stays where it is (SO_PEEK_OFF, Linux 6.9), whoever looks.
func TestPeekOffset(t *testing.T) {
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			inettest.EnterNetwork(t)
			server, client := f.connect(t)
			err := unix.SetsockoptInt(server.fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, 0)
			if errors.Is(err, unix.EOPNOTSUPP) {
				t.Skip("this kernel does not have it")
			}
			if err != nil {
				t.Fatal(err)
			}
			client.write("before")
			look := func(e end, want string) {
				t.Helper()
				b := make([]byte, len(want))
				if n, _, err := unix.Recvfrom(e.fd, b, unix.MSG_PEEK|unix.MSG_WAITALL); err != nil || string(b[:n]) != want {
					t.Fatalf("%q instead of %q, %v", b[:n], want, err)
				}
			}
			look(server, "be")
			s, err := Dump(server.fd)
			if err != nil {
				t.Fatal(err)
			}
			if err := Resume(server.fd, s); err != nil {
				t.Fatal(err)
			}
			look(server, "fo")
			moved := server.move()
			look(moved, "re")
			if got := moved.read(len("before")); got != "before" {
				t.Errorf("it reads %q", got)
			}
		})
	}
}
