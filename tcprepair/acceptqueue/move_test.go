package acceptqueue

import (
	"bytes"
	"errors"
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
			waiting := p.drainAll(l, len(clients))
			for i := range clients {
				if i != 1 && i != 3 { // it has no room, and nothing more to say
					clients[i].write([]byte(", held"))
					sent[i] = append(sent[i], ", held"...)
				}
			}
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

// Sequence numbers wrap around in the queue and after it.
func TestWrapAround(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			p := newPair(t, k)
			l := p.listen(4)
			c := p.dial()
			sent := bytes.Repeat([]byte("0123456789"), 5000)
			c.write(sent)
			p.arrived()
			h := p.hold()
			s := p.drainAll(l, 1)[0]
			client, err := tcprepair.Dump(c.fd)
			if err != nil {
				t.Fatal(err)
			}
			if err := tcprepair.Discard(c.fd); err != nil {
				t.Fatal(err)
			}
			const early = 40000
			shift := -s.Receive.Seq - early
			for _, seq := range []*uint32{&s.Receive.Seq, &s.Window.SendWL1, &s.Window.ReceiveWindowT, &client.Send.Seq} {
				*seq += shift
			}
			shift = -s.Send.Seq - 10
			for _, seq := range []*uint32{&s.Send.Seq, &client.Receive.Seq, &client.Window.SendWL1, &client.Window.ReceiveWindowT} {
				*seq += shift
			}
			err = p.client(func() (err error) {
				if c.fd, err = tcprepair.Restore(client, false); err != nil {
					return err
				}
				limit(t, c.fd)
				return errors.Join(tcprepair.Activate(c.fd, client), unix.SetNonblock(c.fd, false))
			})
			if err != nil {
				t.Fatal(err)
			}
			l = p.listen(4)
			if err := p.filler().Put(l.fd, s); err != nil {
				t.Fatal(err)
			}
			p.release(h)
			a, _ := l.accept()
			a.expect("what waited", sent)
			go a.write(sent)
			c.expect("the answer", sent)
			go c.write(sent)
			a.expect("more", sent)
			p.noResets()
		})
	}
}
