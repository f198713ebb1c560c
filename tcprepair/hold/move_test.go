package hold

import (
	"encoding/binary"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/tcprepair"
)

// A client that asks without a pause gets every answer once and in order while
// its server's socket is taken apart and put together again and again, and
// neither it nor the network has to send anything twice.
func TestMovedWhileAsked(t *testing.T) {
	eachFamily(t, func(t *testing.T, p *pair) {
		const moves, between = 25, 40
		answered := make(chan uint64)
		go func() {
			defer close(answered)
			for n := uint64(1); ; n++ {
				if _, err := unix.Write(p.peer.fd, binary.BigEndian.AppendUint64(nil, n)); err != nil {
					return
				}
				buf := make([]byte, 8)
				if k, err := unix.Read(p.peer.fd, buf); k != len(buf) || err != nil {
					return
				}
				answered <- binary.BigEndian.Uint64(buf)
			}
		}()
		server := p.opened
		next := uint64(1)
		serve := func() {
			t.Helper()
			buf := make([]byte, 8)
			if k, err := unix.Read(server.fd, buf); k != len(buf) || err != nil {
				t.Fatalf("reading request %d: %d, %v", next, k, err)
			}
			if n := binary.BigEndian.Uint64(buf); n != next {
				t.Fatalf("request %d instead of %d", n, next)
			}
			server.write(string(buf))
			if n, ok := <-answered; !ok || n != next {
				t.Fatalf("answer %d instead of %d", n, next)
			}
			next++
		}
		for range moves {
			for range between {
				serve()
			}
			p.opened = server
			before, begun := p.peer.retransmissions(), time.Now()
			h := p.hold()
			s, err := tcprepair.Dump(server.fd)
			if err != nil {
				t.Fatal(err)
			}
			if err := tcprepair.Discard(server.fd); err != nil {
				t.Fatal(err)
			}
			fd, err := tcprepair.Restore(s, false)
			if err != nil {
				t.Fatal(err)
			}
			if err := unix.SetNonblock(fd, false); err != nil {
				t.Fatal(err)
			}
			if err := tcprepair.Activate(fd, s); err != nil {
				t.Fatal(err)
			}
			if err := h.Deliver(t.Context()); err != nil {
				t.Fatal(err)
			}
			server = end{t, fd}
			serve()
			if n := p.peer.retransmissions() - before; n > 0 && time.Since(begun) < patience {
				t.Errorf("the client has sent %d segments again", n)
			}
		}
		if err := unix.Shutdown(server.fd, unix.SHUT_RDWR); err != nil {
			t.Fatal(err)
		}
		for range answered { // its end
		}
		clean(t)
	})
}
