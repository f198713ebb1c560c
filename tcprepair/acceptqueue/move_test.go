package acceptqueue

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/tcprepair"
)

// Connections with data, much data, an end and nothing arrive in order, and both
// sides go on.
func TestMoved(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			p := newPair(t, k)
			l := p.listen(16)
			var clients []end
			var sent [][]byte
			for i := range 5 {
				c := p.dial()
				data := []byte(fmt.Sprintf("request %d", i))
				switch i {
				case 1:
					data = c.stuff('b')
				case 2:
					data = nil
				default:
					c.write(data)
				}
				if i == 3 {
					if err := unix.Shutdown(c.fd, unix.SHUT_WR); err != nil {
						t.Fatal(err)
					}
				}
				clients, sent = append(clients, c), append(sent, data)
			}
			p.arrived()
			h := p.hold()
			waiting, lost := Drain(l.fd)
			if len(waiting) != len(clients) || len(lost) != 0 {
				t.Fatalf("%d wait, lost: %v", len(waiting), lost)
			}
			l.close()
			l = p.listen(16)
			f := p.filler()
			for i, s := range waiting {
				begun := time.Now()
				if err := f.Put(l.fd, s); err != nil {
					t.Fatal(err)
				}
				t.Logf("%v: %d bytes, %v", s.State, len(s.Receive.Data), time.Since(begun))
				if i == 1 && len(s.Receive.Data) < 50<<10 {
					t.Errorf("only %d bytes waited", len(s.Receive.Data))
				}
			}
			p.release(h)
			var servers []end
			for i, c := range clients {
				s, from := l.accept()
				if from != c.local() {
					t.Fatalf("connection %d is from %v instead of %v", i, from, c.local())
				}
				s.expect(fmt.Sprint("connection ", i), sent[i])
				servers = append(servers, s)
			}
			for i, c := range clients {
				s := servers[i]
				s.write([]byte("answer"))
				c.expect("answer", []byte("answer"))
				if i == 3 {
					s.expectEnd("the client's end")
				} else {
					c.write([]byte("more"))
					s.expect("more", []byte("more"))
				}
				big := bytes.Repeat([]byte("0123456789abcdef"), 1<<18)
				go s.write(big)
				c.expect("much to the client", big)
				if i == 3 {
					continue
				}
				go c.write(big)
				s.expect("much to the server", big)
			}
			p.noResets()
			for i, c := range clients {
				s, _, err := tcprepair.Look(servers[i].fd)
				if err != nil {
					t.Fatal(err)
				}
				s.Negotiated.MSS = waiting[i].Negotiated.MSS // is the present one
				if s.Negotiated != waiting[i].Negotiated {
					t.Errorf("negotiated %+v instead of %+v", s.Negotiated, waiting[i].Negotiated)
				}
				if err := unix.Shutdown(servers[i].fd, unix.SHUT_WR); err != nil {
					t.Fatal(err)
				}
				c.expectEnd("the server's end")
			}
		})
	}
}
