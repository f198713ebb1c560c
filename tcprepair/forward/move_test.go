package forward

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/tcprepair"
	"github.com/pagurus-project/pagurus/tcprepair/hold"
)

const name = "test"

// move takes a connection of home's address from one host to another, as a migration does.
// meanwhile is called while nobody has it. It reports a move in less time than any
// retransmission time-out takes: on a busy machine it can last longer, and a peer sends again.
func (l *lab) move(from, to *host, server end, flow Flow, meanwhile func()) (moved end, quick bool) {
	l.t.Helper()
	flows := []Flow{flow}
	devices := []string{"eth0", "lo"}
	var last, next *hold.Hold
	begin := func(h **hold.Hold) func() error {
		return func() (err error) {
			if *h, err = hold.Prepare(hold.Config{Name: name, Devices: devices, Flows: flows}); err != nil {
				return err
			}
			return (*h).Begin()
		}
	}
	to.do(begin(&next))
	from.do(begin(&last))
	begun := time.Now()
	var s *tcprepair.Socket
	from.do(func() (err error) {
		if s, err = tcprepair.Dump(server.fd); err != nil {
			return err
		}
		return tcprepair.Discard(server.fd)
	})
	meanwhile()

	var fd int
	to.do(func() (err error) {
		// What it forwarded since the connection was there before would come back to it.
		if err := Remove(name); err != nil {
			return err
		}
		transparent(s, to != l.home)
		if to != l.home {
			if err := Admit(name, flows); err != nil {
				return err
			}
		}
		if fd, err = tcprepair.Restore(s, to != l.home); err != nil || to == l.home {
			return err
		}
		return tcprepair.Arrive(fd, s)
	})
	// From here on the connection lives there.
	passOn := func(devices ...string) error {
		n, err := Reach([]netip.Addr{to.address(false), to.address(true)})
		if err != nil {
			return err
		}
		return Set(Forward{Name: name, Devices: devices, Flows: flows, To: n})
	}
	// What it sends at once must not be lost, or it is sent again only after a second.
	to.do(func() error { return errors.Join(next.LetOut(), tcprepair.Activate(fd, s)) })
	from.do(func() error {
		if err := errors.Join(Dismiss(name), passOn(last.Device())); err != nil {
			return err
		}
		return last.Reinject(l.t.Context(), 1500, func() error {
			if from != l.home && to != l.home {
				if err := l.home.run(func() error { return passOn("eth0") }); err != nil {
					return err
				}
			}
			return passOn("eth0", last.Device())
		})
	})
	to.do(func() error { return next.Deliver(l.t.Context()) })
	quick = time.Since(begun) < 150*time.Millisecond
	to.do(next.Close)
	from.do(last.Close)
	return l.end(fd), quick
}

// transparent is what a guest's socket is, and nobody else's.
func transparent(s *tcprepair.Socket, on bool) {
	value := make([]byte, 4)
	if on {
		binary.NativeEndian.PutUint32(value, 1)
	}
	for i := range s.Options {
		if o := &s.Options[i]; o.Level == unix.SOL_IP && o.Name == unix.IP_TRANSPARENT {
			o.Value = value
		}
	}
}

// A connection goes to another host and its address stays, with all others there.
func TestMovedAway(t *testing.T) {
	eachFamily(t, func(t *testing.T, l *lab) {
		listener := l.listen(l.home, 0)
		peer, server, flow := l.connect(l.client, listener)
		second, secondServer, _ := l.connect(l.client, listener)
		others, othersServer, _ := l.connect(l.stranger, listener)
		l.talk("before", peer, server)

		sent := ""
		resets, timeouts := l.home.count("Tcp", "OutRsts"), l.client.count("TcpExt", "TCPTimeouts")
		server, quick := l.move(l.home, l.b, server, flow, func() {
			for i := range 20 {
				part := strings.Repeat(string(rune('a'+i)), 2000)
				if _, err := peer.Write([]byte(part)); err != nil {
					t.Fatal(err)
				}
				sent += part
			}
			l.talk("others meanwhile", others, othersServer)
		})
		if err := server.expect(sent); err != nil {
			t.Fatal(err)
		}
		// Probes for the loss of what nobody has acknowledged come within milliseconds
		// (RFC 8985, 7): these are no time-outs.
		if n := l.client.count("TcpExt", "TCPTimeouts") - timeouts; n > 0 && quick {
			t.Errorf("the client has waited for %d time-outs", n)
		}
		l.talk("after", peer, server)
		l.talk("the second", second, secondServer)
		l.talk("others", others, othersServer)
		fresh, freshServer, _ := l.connect(l.client, listener)
		l.talk("new", fresh, freshServer)
		l.transfer(peer, server, 8<<20)
		l.tells(flow, l.b)
		l.ends(peer, server, flow)
		for _, e := range []end{second, secondServer, others, othersServer, fresh, freshServer} {
			unix.Close(e.fd)
		}
		l.home.do(func() error { return Remove(name) })
		l.b.do(func() error { return Dismiss(name) })
		if n := l.home.count("Tcp", "OutRsts"); n != resets {
			t.Errorf("home has sent %d resets", n-resets)
		}
		l.clean()
	})
}

// transfer sends as much in both directions at once.
func (l *lab) transfer(a, b end, size int) {
	l.t.Helper()
	var done sync.WaitGroup
	for i, ends := range [][2]end{{a, b}, {b, a}} {
		data := make([]byte, size)
		r := rand.New(rand.NewPCG(uint64(i), uint64(size)))
		for i := 0; i < size; i += 8 {
			binary.NativeEndian.PutUint64(data[i:], r.Uint64())
		}
		done.Go(func() {
			if n, err := ends[0].Write(data); err != nil {
				l.t.Errorf("writing, after %d bytes: %v", n, err)
			}
		})
		done.Go(func() {
			sum := sha256.New()
			if n, err := io.CopyN(sum, ends[1], int64(size)); err != nil {
				l.t.Errorf("reading, after %d bytes: %v", n, err)
			}
			if want := sha256.Sum256(data); !bytes.Equal(sum.Sum(nil), want[:]) {
				l.t.Error("other data arrived than was sent")
			}
		})
	}
	done.Wait()
}

// tells checks what both hosts tell of a connection.
func (l *lab) tells(flow Flow, at *host) {
	l.t.Helper()
	l.home.do(func() error {
		all, err := List()
		if err != nil || len(all) != 1 {
			return fmt.Errorf("%+v are forwarded: %w", all, err)
		}
		want := Neighbor{Device: "eth0", IPv4: at.address(false), IPv6: at.address(true)}
		if f := all[0]; f.Name != name || !slices.Equal(f.Flows, []Flow{flow}) || f.To != want || f.Packets == 0 || !slices.Contains(f.Devices, "eth0") {
			l.t.Errorf("%+v is forwarded", f)
		}
		alive, err := Alive([]Flow{flow})
		if len(alive) > 0 {
			l.t.Errorf("%v has a socket at home", alive)
		}
		return err
	})
	at.do(func() error {
		all, err := Guests()
		if len(all) != 1 || !slices.Equal(all[name], []Flow{flow}) {
			l.t.Errorf("guests are %v", all)
		}
		alive, err1 := Alive([]Flow{flow, {Local: flow.Remote, Remote: flow.Local}})
		if !slices.Equal(alive, []Flow{flow}) {
			l.t.Errorf("%v have a socket there", alive)
		}
		return errors.Join(err, err1)
	})
}

// ends closes a connection, the guest first, which comes to rest in TIME-WAIT.
func (l *lab) ends(peer, server end, flow Flow) {
	l.t.Helper()
	unix.Close(server.fd)
	if n, err := peer.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		l.t.Errorf("at the end: %d, %v", n, err)
	}
	unix.Close(peer.fd)
	eventually(l.t, "the end of the peer's socket", func() bool {
		var alive []Flow
		l.client.do(func() (err error) {
			alive, err = Alive([]Flow{{Local: flow.Remote, Remote: flow.Local}})
			return err
		})
		return len(alive) == 0
	})
	l.b.do(func() error {
		if alive, err := Alive([]Flow{flow}); err != nil || len(alive) != 1 {
			return fmt.Errorf("alive in TIME-WAIT: %v, %w", alive, err)
		}
		return nil
	})
}

// A connection that goes from host to host and home again, with a client that asks all the
// time, and one that sends much, loses nothing, and nobody waits for a time-out.
func TestMovedOn(t *testing.T) {
	eachFamily(t, func(t *testing.T, l *lab) {
		listener := l.listen(l.home, 0)
		peer, server, flow := l.connect(l.client, listener)
		var current atomic.Int64 // descriptor of the server's socket, or -1
		var moving sync.RWMutex
		current.Store(int64(server.fd))
		stop := make(chan struct{})
		var done sync.WaitGroup
		const size = 3000 // of a question, more than goes into a packet
		done.Go(func() {
			for n := byte(0); ; n++ {
				select {
				case <-stop:
					if err := unix.Shutdown(peer.fd, unix.SHUT_WR); err != nil {
						t.Error(err)
					}
					return
				default:
				}
				if err := say(peer, peer, string(pattern(size, n))); err != nil {
					t.Errorf("question %d: %v", n, err)
					return
				}
			}
		})
		done.Go(func() { // an echo, whichever socket it has
			buf := make([]byte, 1<<16)
			for {
				moving.RLock()
				fd := int(current.Load())
				n, _, err := unix.Recvfrom(fd, buf, unix.MSG_DONTWAIT)
				if err == nil && n > 0 {
					_, err = end{t, fd}.Write(buf[:n])
				}
				moving.RUnlock()
				switch {
				case errors.Is(err, unix.EAGAIN) && !t.Failed():
					<-time.After(100 * time.Microsecond)
				case err != nil:
					t.Errorf("serving: %v", err)
					return
				case n == 0:
					return
				}
			}
		})
		timeouts := l.client.count("TcpExt", "TCPTimeouts")
		at, quick := l.home, true
		for _, to := range []*host{l.b, l.c, l.home, l.c, l.b, l.home, l.b, l.c} {
			<-time.After(20 * time.Millisecond)
			moving.Lock()
			var this bool
			server, this = l.move(at, to, server, flow, func() {})
			quick = quick && this
			current.Store(int64(server.fd))
			moving.Unlock()
			at = to
			if t.Failed() {
				break
			}
		}
		<-time.After(20 * time.Millisecond)
		if n := l.client.count("TcpExt", "TCPTimeouts") - timeouts; n > 0 && quick {
			t.Errorf("the client has waited for %d time-outs", n)
		}
		l.tells(flow, l.c)
		close(stop)
		done.Wait()
		for _, h := range []*host{l.home, l.b, l.c} {
			h.do(func() error { return errors.Join(Remove(name), Dismiss(name)) })
			if n := h.count("Tcp", "OutRsts"); n > 0 {
				t.Errorf("%s has sent %d resets", h.name, n)
			}
		}
		unix.Close(server.fd)
		unix.Close(peer.fd)
		l.clean()
	})
}

// A client on the host to which the other end of its connection goes reaches it there.
func TestClientOfGuest(t *testing.T) {
	eachFamily(t, func(t *testing.T, l *lab) {
		listener := l.listen(l.home, 0)
		peer, server, flow := l.connect(l.b, listener)
		l.talk("before", peer, server)
		server, _ = l.move(l.home, l.b, server, flow, func() {
			if _, err := peer.Write([]byte("held")); err != nil {
				t.Fatal(err)
			}
		})
		if err := server.expect("held"); err != nil {
			t.Fatal(err)
		}
		l.talk("after", peer, server)
		l.transfer(peer, server, 4<<20)
		for _, h := range []*host{l.home, l.b} {
			h.do(func() error { return errors.Join(Remove(name), Dismiss(name)) })
		}
		l.clean()
	})
}

// Two guests of one host that talk to each other, and have been at home both, go on so.
func TestBothGuests(t *testing.T) {
	eachFamily(t, func(t *testing.T, l *lab) {
		listener := l.listen(l.home, 0)
		peer, server, flow := l.connect(l.home, listener)
		l.talk("before", peer, server)
		other := Flow{Local: flow.Remote, Remote: flow.Local}
		flows := []Flow{flow, other}
		var last, next *hold.Hold
		begin := func(h **hold.Hold) func() error {
			return func() (err error) {
				if *h, err = hold.Prepare(hold.Config{Name: name, Devices: []string{"eth0", "lo"}, Flows: flows}); err != nil {
					return err
				}
				return (*h).Begin()
			}
		}
		l.home.do(begin(&last))
		l.b.do(begin(&next))
		if _, err := peer.Write([]byte("held at home")); err != nil { // or rather not let out
			t.Fatal(err)
		}
		var sockets [2]*tcprepair.Socket
		for i, fd := range []int{server.fd, peer.fd} {
			l.home.do(func() (err error) {
				if sockets[i], err = tcprepair.Dump(fd); err != nil {
					return err
				}
				transparent(sockets[i], true)
				return tcprepair.Discard(fd)
			})
		}
		var fds [2]int
		l.b.do(func() (err error) {
			if err := Admit(name, flows); err != nil {
				return err
			}
			for i, s := range sockets {
				if fds[i], err = tcprepair.Restore(s, true); err != nil {
					return err
				}
			}
			if err := next.LetOut(); err != nil {
				return err
			}
			for i, s := range sockets {
				if err := tcprepair.Activate(fds[i], s); err != nil {
					return err
				}
			}
			return errors.Join(next.Deliver(t.Context()), next.Close())
		})
		l.home.do(last.Close)
		server, peer = l.end(fds[0]), l.end(fds[1])
		if err := server.expect("held at home"); err != nil {
			t.Fatal(err)
		}
		out := l.b.count("Tcp", "OutRsts")
		l.talk("after", peer, server)
		l.transfer(peer, server, 4<<20)
		if n := l.b.count("Tcp", "OutRsts") - out; n > 0 {
			t.Errorf("%d resets", n)
		}
		l.b.do(func() error { return Dismiss(name) })
		l.clean()
	})
}
