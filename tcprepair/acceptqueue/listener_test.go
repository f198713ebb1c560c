package acceptqueue

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/tcprepair"
	"github.com/pagurus-project/pagurus/tcprepair/inet"
)

// moveOne moves a connection that waits in a listener to another one like it.
func (p *pair) moveOne(prepare ...func(int) error) (s *tcprepair.Socket, client, listener end) {
	p.t.Helper()
	l := p.listen(4, prepare...)
	c := p.dial()
	c.write([]byte("hello"))
	p.arrived()
	h := p.hold()
	s = p.drainAll(l, 1)[0]
	l = p.listen(4, prepare...)
	if err := p.filler().Put(l.fd, s); err != nil {
		p.t.Fatal(err)
	}
	p.release(h)
	return s, c, l
}

func (p *pair) talk(client, server end) {
	p.t.Helper()
	server.expect("what waited", []byte("hello"))
	server.write([]byte("welcome"))
	client.expect("the answer", []byte("welcome"))
	p.noResets()
}

// Listeners with options: connections have them, as they had, and the listeners keep them.
func TestListeners(t *testing.T) {
	set := func(level, name, value int) func(int) error {
		return func(fd int) error { return unix.SetsockoptInt(fd, level, name, value) }
	}
	for name, prepare := range map[string]func(int) error{
		"TCP_DEFER_ACCEPT": set(unix.SOL_TCP, unix.TCP_DEFER_ACCEPT, 5),
		"SO_RCVBUF":        set(unix.SOL_SOCKET, unix.SO_RCVBUF, 30000),
		"SO_KEEPALIVE":     set(unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1),
		"TCP_NODELAY":      set(unix.SOL_TCP, unix.TCP_NODELAY, 1),
		"owner":            func(fd int) error { return unix.Fchown(fd, 1234, 1234) },
	} {
		for _, k := range kinds {
			t.Run(name+"/"+k.name, func(t *testing.T) {
				p := newPair(t, k)
				s, c, l := p.moveOne(prepare)
				had, _, err := tcprepair.Look(l.fd)
				if err != nil {
					t.Fatal(err)
				}
				fresh := p.listenElsewhere(prepare)
				want, _, err := tcprepair.Look(fresh.fd)
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(labels(want.Options), labels(had.Options)); diff != "" || had.Buffers != want.Buffers {
					t.Errorf("the listener's buffers are %v instead of %v, options (-before +after):\n%s", had.Buffers, want.Buffers, diff)
				}
				a, _ := l.accept()
				p.talk(c, a)
				is, err := tcprepair.Dump(a.fd)
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(labels(s.Options), labels(is.Options)); diff != "" {
					t.Errorf("options of the connection (-before +after):\n%s", diff)
				}
				if is.Buffers.Locks != s.Buffers.Locks || is.Buffers.Receive < s.Buffers.Receive {
					t.Errorf("buffers %v instead of %v", is.Buffers, s.Buffers)
				}
			})
		}
	}
}

// labels are options by their names, but for where packets came from, what the test itself
// sets, and what is 0 or 1 and means the same.
func labels(all []inet.Option) map[string]string {
	m := make(map[string]string)
	for _, o := range all {
		switch o.Name {
		case unix.SO_INCOMING_CPU, unix.SO_RCVTIMEO_NEW, unix.SO_SNDTIMEO_NEW, unix.SO_RCVLOWAT:
		default:
			m[inet.TCP.Kind(o.Level, o.Name).Label] = string(o.Value)
		}
	}
	return m
}

// Of several listeners at one port the one that was asked for gets the connection.
func TestGroup(t *testing.T) {
	for _, k := range kinds[:3] {
		t.Run(k.name, func(t *testing.T) {
			p := newPair(t, k)
			share := func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) }
			l := p.listen(16, share)
			var clients []end
			for range 8 {
				c := p.dial()
				c.write([]byte("hello"))
				clients = append(clients, c)
			}
			p.arrived()
			h := p.hold()
			waiting := p.drainAll(l, len(clients))
			group := []end{p.listen(16, share), p.listen(16, share), p.listen(16, share)}
			f := p.filler()
			for i, s := range waiting {
				if err := f.Put(group[i%len(group)].fd, s); err != nil {
					t.Fatal(err)
				}
			}
			p.release(h)
			for i, c := range clients {
				a, from := group[i%len(group)].accept()
				if from != c.local() {
					t.Errorf("connection %d is from %v", i, from)
				}
				p.talk(c, a)
			}
		})
	}
}

// A listener of MPTCP may share its port, but does not with others.
func TestSharedPort(t *testing.T) {
	for _, k := range kinds[3:] {
		t.Run(k.name, func(t *testing.T) {
			p := newPair(t, k)
			share := func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) }
			l := p.listen(4, share)
			c := p.dial()
			c.write([]byte("hello"))
			p.arrived()
			h := p.hold()
			s := p.drainAll(l, 1)[0]
			l = p.listen(4, share)
			other := p.listen(4, share)
			f := p.filler()
			if err := f.Put(l.fd, s); !errors.Is(err, tcprepair.ErrUnsupported) {
				t.Errorf("into one of two: %v", err)
			}
			other.close()
			if err := f.Put(l.fd, s); err != nil {
				t.Error(err)
			}
			if value, err := unix.GetsockoptInt(l.fd, unix.SOL_SOCKET, unix.SO_REUSEPORT); err != nil || value != 1 {
				t.Errorf("SO_REUSEPORT is %d, %v", value, err)
			}
			p.release(h)
			a, _ := l.accept()
			p.talk(c, a)
		})
	}
}

// Who waits for a listener already is told of the connection.
func TestWoken(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			p := newPair(t, k)
			l := p.listen(4)
			c := p.dial()
			c.write([]byte("hello"))
			p.arrived()
			h := p.hold()
			s := p.drainAll(l, 1)[0]
			l = p.listen(4)
			e, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(e)
			if err := unix.EpollCtl(e, unix.EPOLL_CTL_ADD, l.fd, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET}); err != nil {
				t.Fatal(err)
			}
			woken := make(chan error)
			go func() {
				for begun := time.Now(); ; {
					n, err := unix.EpollWait(e, make([]unix.EpollEvent, 1), 5000)
					if errors.Is(err, unix.EINTR) && time.Since(begun) < 5*time.Second {
						continue
					}
					if err == nil && n != 1 {
						err = fmt.Errorf("%d events", n)
					}
					woken <- err
					return
				}
			}()
			<-time.After(50 * time.Millisecond) // so that it waits already
			if err := p.filler().Put(l.fd, s); err != nil {
				t.Error(err)
			}
			if err := <-woken; err != nil {
				t.Error(err)
			}
			p.release(h)
		})
	}
}

// Much data waits in a large buffer.
func TestMuch(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			p := newPair(t, k)
			large := func(fd int) error { return inet.SetInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20) }
			l := p.listen(4, large)
			c := p.dial()
			sent := c.stuff('m')
			p.arrived()
			h := p.hold()
			s := p.drainAll(l, 1)[0]
			l = p.listen(4)
			f := p.filler()
			begun := time.Now()
			if err := f.Put(l.fd, s); err != nil {
				t.Fatal(err)
			}
			t.Logf("%d bytes of %d put in %v", len(s.Receive.Data), len(sent), time.Since(begun))
			p.release(h)
			a, _ := l.accept()
			a.expect("what waited", sent)
			p.noResets()
		})
	}
}

// Many connections are put quickly, and stay in order.
func TestMany(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			p := newPair(t, k)
			l := p.listen(200)
			var clients []end
			for range 100 {
				c := p.dial()
				c.write([]byte("hello"))
				clients = append(clients, c)
			}
			p.arrived()
			h := p.hold()
			begun := time.Now()
			waiting := p.drainAll(l, len(clients))
			t.Logf("drained in %v each", time.Since(begun)/time.Duration(len(waiting)))
			l = p.listen(200)
			begun = time.Now()
			f := p.filler()
			t.Logf("a Filler in %v", time.Since(begun))
			begun = time.Now()
			for _, s := range waiting {
				if err := f.Put(l.fd, s); err != nil {
					t.Fatal(err)
				}
			}
			t.Logf("put in %v each", time.Since(begun)/time.Duration(len(waiting)))
			p.release(h)
			for i, c := range clients {
				a, from := l.accept()
				if from != c.local() {
					t.Fatalf("connection %d is from %v", i, from)
				}
				p.talk(c, a)
				a.close()
				c.close()
			}
		})
	}
}
