package acceptqueue

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/tcprepair"
)

// drainAll drains a listener in which nothing is lost, and closes it.
func (p *pair) drainAll(l end, want int) []*tcprepair.Socket {
	p.t.Helper()
	waiting, lost := Drain(l.fd)
	if len(waiting) != want || len(lost) != 0 {
		p.t.Fatalf("%d wait instead of %d, lost: %v", len(waiting), want, lost)
	}
	l.close()
	return waiting
}

// A full queue takes nothing, and the peer hears nothing of that.
func TestFull(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			p := newPair(t, k)
			l := p.listen(4)
			var clients []end
			for range 3 {
				c := p.dial()
				c.write([]byte("hello"))
				clients = append(clients, c)
			}
			p.arrived()
			h := p.hold()
			waiting := p.drainAll(l, len(clients))
			l = p.listen(1) // which takes one more
			f := p.filler()
			for i, s := range waiting {
				err := f.Put(l.fd, s)
				if want := i == 2; errors.Is(err, ErrFull) != want || (err == nil) == want {
					t.Errorf("connection %d: %v", i, err)
				}
			}
			if k.protocol == unix.IPPROTO_TCP { // without having looked
				if err := f.putInto(l.fd, waiting[2], 0); !errors.Is(err, ErrRefused) {
					t.Errorf("put into a full queue: %v", err)
				}
			}
			s, _ := l.accept()
			if err := f.Put(l.fd, waiting[2]); err != nil {
				t.Errorf("when there is room again: %v", err)
			}
			p.release(h)
			s.expect("the first", []byte("hello"))
			for i := 1; i < len(clients); i++ {
				s, from := l.accept()
				if from != clients[i].local() {
					t.Errorf("connection %d is from %v", i, from)
				}
				s.expect(fmt.Sprint(i), []byte("hello"))
				s.write([]byte("hello"))
				clients[i].expect(fmt.Sprint(i), []byte("hello"))
			}
			p.noResets()
		})
	}
}

// What cannot be put leaves nothing, and nobody is told.
func TestRefused(t *testing.T) {
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
			f := p.filler()
			change := func(f func(*tcprepair.Socket)) *tcprepair.Socket {
				changed := *s
				f(&changed)
				return &changed
			}
			for name, bad := range map[string]struct {
				s    *tcprepair.Socket
				want error
			}{
				"ended":        {change(func(s *tcprepair.Socket) { s.State, s.Ended, s.Remote = tcprepair.Closed, true, netip.AddrPort{} }), ErrEnded},
				"closing":      {change(func(s *tcprepair.Socket) { s.State = tcprepair.LastAck }), tcprepair.ErrUnsupported},
				"answered":     {change(func(s *tcprepair.Socket) { s.Send.Data = []byte("x") }), tcprepair.ErrInvalid},
				"too small":    {change(func(s *tcprepair.Socket) { s.Negotiated.MSS = 100 }), unix.EINVAL},
				"from nowhere": {change(func(s *tcprepair.Socket) { s.Local = netip.AddrPortFrom(s.Remote.Addr(), s.Local.Port()) }), unix.EADDRNOTAVAIL},
			} {
				if err := f.Put(l.fd, bad.s); !errors.Is(err, bad.want) {
					t.Errorf("%s: %v", name, err)
				}
			}
			if err := f.Put(c.fd, s); !errors.Is(err, ErrRefused) {
				t.Errorf("into what does not listen: %v", err)
			}
			bound := p.listenElsewhere(func(fd int) error { return unix.BindToDevice(fd, "wire") })
			if err := f.Put(bound.fd, s); !errors.Is(err, tcprepair.ErrUnsupported) {
				t.Errorf("into what is bound to a device: %v", err)
			}
			if err := f.Put(p.listenElsewhere().fd, s); !errors.Is(err, ErrRefused) {
				t.Errorf("into a listener of another port: %v", err)
			}
			if waiting, lost := Drain(l.fd); len(waiting)+len(lost) != 0 {
				t.Errorf("%v is in the queue, %v", waiting, lost)
			}
			if err := f.Put(l.fd, s); err != nil {
				t.Fatal(err)
			}
			if err := f.Put(l.fd, s); !errors.Is(err, ErrExists) {
				t.Errorf("for the second time: %v", err)
			}
			p.release(h)
			a, _ := l.accept()
			a.expect("the connection", []byte("hello"))
			p.noResets()
		})
	}
}

// listenElsewhere makes a listener at another port.
func (p *pair) listenElsewhere(prepare ...func(int) error) end {
	p.t.Helper()
	port := p.port
	defer func() { p.port = port }()
	p.port = 0
	return p.listen(4, prepare...)
}

// A connection that its peer has reset is lost, the others are not.
func TestReset(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			p := newPair(t, k)
			l := p.listen(16)
			var clients []end
			for i := range 4 {
				c := p.dial()
				c.write([]byte("hello"))
				if i%2 == 0 {
					clients = append(clients, c)
					continue
				}
				if err := unix.SetsockoptLinger(c.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
					t.Fatal(err)
				}
				c.close()
			}
			p.arrived()
			h := p.hold()
			waiting, lost := Drain(l.fd)
			if len(waiting) != 2 || len(lost) != 2 || !errors.Is(lost[0], ErrEnded) || !errors.Is(lost[1], ErrEnded) {
				t.Fatalf("%d wait, lost: %v", len(waiting), lost)
			}
			t.Log(lost)
			l.close()
			l = p.listen(16)
			f := p.filler()
			for _, s := range waiting {
				if err := f.Put(l.fd, s); err != nil {
					t.Fatal(err)
				}
			}
			p.release(h)
			for _, c := range clients {
				s, from := l.accept()
				if from != c.local() {
					t.Errorf("a connection from %v", from)
				}
				s.expect("it", []byte("hello"))
			}
			p.noResets()
		})
	}
}

// A connection that cannot be moved is lost, and its peer is not told.
func TestLost(t *testing.T) {
	p := newPair(t, kinds[0])
	l := p.listen(16)
	c := p.dial()
	if err := unix.Sendto(c.fd, []byte("!"), unix.MSG_OOB, nil); err != nil {
		t.Fatal(err)
	}
	p.arrived()
	h := p.hold()
	waiting, lost := Drain(l.fd)
	if len(waiting) != 0 || len(lost) != 1 || !errors.Is(lost[0], tcprepair.ErrUnsupported) {
		t.Errorf("%d wait, lost: %v", len(waiting), lost)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	p.noResets()
}

// A connection of several paths is lost.
func TestPaths(t *testing.T) {
	for _, k := range kinds[3:] {
		t.Run(k.name, func(t *testing.T) {
			p := newPair(t, k)
			l := p.listen(16)
			first := p.dial()
			first.write([]byte("hello"))
			err := p.client(func() error {
				e := socket(t, unix.AF_INET, unix.IPPROTO_MPTCP)
				return unix.Connect(e.fd, sockaddr(unix.AF_INET, "10.9.0.1", p.port))
			})
			if err != nil {
				t.Fatal(err)
			}
			p.arrived()
			h := p.hold()
			waiting, lost := Drain(l.fd)
			if len(waiting) != 1 || len(lost) != 1 || !errors.Is(lost[0], tcprepair.ErrUnsupported) {
				t.Errorf("%d wait, lost: %v", len(waiting), lost)
			}
			p.release(h)
		})
	}
}

// A listener is as it was when it has been drained, and nothing is waited for.
func TestDrainWaitsForNothing(t *testing.T) {
	for _, k := range kinds {
		for _, nonblocking := range []bool{false, true} {
			t.Run(fmt.Sprint(k.name, "/", nonblocking), func(t *testing.T) {
				p := newPair(t, k)
				l := p.listen(16)
				if err := unix.SetNonblock(l.fd, nonblocking); err != nil {
					t.Fatal(err)
				}
				p.dial()
				p.arrived()
				before, err := unix.FcntlInt(uintptr(l.fd), unix.F_GETFL, 0)
				if err != nil {
					t.Fatal(err)
				}
				begun := time.Now()
				for _, want := range []int{1, 0} {
					if waiting, lost := Drain(l.fd); len(waiting) != want || len(lost) != 0 {
						t.Errorf("%d wait instead of %d, lost: %v", len(waiting), want, lost)
					}
				}
				if took := time.Since(begun); took > 2*time.Second {
					t.Errorf("it took %v", took)
				}
				if after, err := unix.FcntlInt(uintptr(l.fd), unix.F_GETFL, 0); err != nil || after != before {
					t.Errorf("flags %#x instead of %#x, %v", after, before, err)
				}
				null, err := os.Open(os.DevNull)
				if err != nil {
					t.Fatal(err)
				}
				defer null.Close()
				if _, lost := Drain(int(null.Fd())); len(lost) != 1 || !errors.Is(lost[0], unix.ENOTSOCK) {
					t.Errorf("without a listener: %v", lost)
				}
			})
		}
	}
}

// Where SYN cookies are not allowed, they are while there is a Filler.
func TestWithoutCookies(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			p := newPair(t, k)
			if err := os.WriteFile(cookiesSetting, []byte("0"), 0); err != nil {
				t.Fatal(err)
			}
			l := p.listen(4)
			c := p.dial()
			c.write([]byte("hello"))
			p.arrived()
			h := p.hold()
			s := p.drainAll(l, 1)[0]
			l = p.listen(4)
			f, err := NewFiller()
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(f.Put(l.fd, s), f.Close()); err != nil {
				t.Fatal(err)
			}
			for _, setting := range []string{cookiesSetting, migrateSetting} {
				if text, err := os.ReadFile(setting); err != nil || strings.TrimSpace(string(text)) != "0" {
					t.Errorf("%s is %q afterwards, %v", setting, text, err)
				}
			}
			p.release(h)
			a, _ := l.accept()
			a.expect("the connection", []byte("hello"))
			p.noResets()
		})
	}
}

// A client without any option of TCP but for the size of its segments.
func TestNothingNegotiated(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			p := newPair(t, k)
			err := p.client(func() (err error) {
				for _, name := range []string{"tcp_timestamps", "tcp_sack", "tcp_window_scaling"} {
					err = errors.Join(err, os.WriteFile("/proc/sys/net/ipv4/"+name, []byte("0"), 0))
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			l := p.listen(4)
			c := p.dial()
			sent := c.stuff('a')
			p.arrived()
			h := p.hold()
			s := p.drainAll(l, 1)[0]
			if n := s.Negotiated; n.Scaled || n.SACK || n.Timestamps || len(s.Receive.Data) < 16<<10 {
				t.Errorf("%+v, %d bytes", n, len(s.Receive.Data))
			}
			l = p.listen(4)
			if err := p.filler().Put(l.fd, s); err != nil {
				t.Fatal(err)
			}
			p.release(h)
			a, _ := l.accept()
			a.expect("what waited", sent)
			big := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
			go a.write(big)
			c.expect("much to the client", big)
			go c.write(big)
			a.expect("much to the server", big)
			p.noResets()
		})
	}
}
