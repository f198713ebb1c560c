package hold

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/tcprepair"
)

// A client that asks without a pause gets every answer once and in order while
// its server's socket is taken apart and put together again and again, every
// second time while the host does not have the address, and neither it nor the
// network has to send anything twice.
func TestMovedWhileAsked(t *testing.T) {
	eachFamily(t, func(t *testing.T, p *pair) {
		const moves, between = 25, 40
		answered := make(chan uint64)
		go func() {
			defer close(answered)
			for n := uint64(1); ; n++ {
				if _, err := writeTo(p.peer.fd, binary.BigEndian.AppendUint64(nil, n)); err != nil {
					return
				}
				buf := make([]byte, 8)
				if k, err := readFrom(p.peer.fd, buf); k != len(buf) || err != nil {
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
			if k, err := readFrom(server.fd, buf); k != len(buf) || err != nil {
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
		for move := range moves {
			for range between {
				serve()
			}
			p.opened = server
			before, begun := p.peer.retransmissions(), time.Now()
			early := move%2 == 1
			h := p.hold()
			if early {
				if err := h.Close(); err != nil {
					t.Fatal(err)
				}
				h = p.holdAll()
			}
			s, err := tcprepair.Dump(server.fd)
			if err != nil {
				t.Fatal(err)
			}
			if err := tcprepair.Discard(server.fd); err != nil {
				t.Fatal(err)
			}
			if early {
				p.leave()
			}
			fd, err := tcprepair.Restore(s, early)
			if err != nil {
				t.Fatal(err)
			}
			if early {
				p.comeBack()
				if err := tcprepair.Arrive(fd, s); err != nil {
					t.Fatal(err)
				}
			}
			if err := unix.SetNonblock(fd, false); err != nil {
				t.Fatal(err)
			}
			if err := tcprepair.Activate(fd, s); err != nil {
				t.Fatal(err)
			}
			if err := release(t, h); err != nil {
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

// Connections in which one end has nothing more to say are put together before the
// host has their address, too.
func TestHalfClosedEarly(t *testing.T) {
	for name, client := range map[string]bool{"the client": true, "the server": false} {
		t.Run(name, func(t *testing.T) {
			eachFamily(t, func(t *testing.T, p *pair) {
				says, hears := p.opened, p.peer
				if client {
					says, hears = p.peer, p.opened
				}
				says.write("last words")
				if err := unix.Shutdown(says.fd, unix.SHUT_WR); err != nil {
					t.Fatal(err)
				}
				wanted := tcprepair.FinWait2
				if client {
					wanted = tcprepair.CloseWait
				}
				for begun := time.Now(); ; {
					s, _, err := tcprepair.Look(p.opened.fd)
					if err != nil {
						t.Fatal(err)
					}
					if s.State == wanted {
						break
					}
					if time.Since(begun) > 10*time.Second {
						t.Fatalf("it is in %v", s.State)
					}
				}
				h := p.holdAll()
				s, err := tcprepair.Dump(p.opened.fd)
				if err != nil {
					t.Fatal(err)
				}
				if err := tcprepair.Discard(p.opened.fd); err != nil {
					t.Fatal(err)
				}
				p.leave()
				fd, err := tcprepair.Restore(s, true)
				if err != nil {
					t.Fatal(err)
				}
				p.comeBack()
				if err := errors.Join(tcprepair.Arrive(fd, s), tcprepair.Activate(fd, s), unix.SetNonblock(fd, false)); err != nil {
					t.Fatal(err)
				}
				if err := release(t, h); err != nil {
					t.Fatal(err)
				}
				moved := end{t, fd}
				if client {
					hears = moved
				} else {
					says = moved
				}
				hears.expect("last words")
				if n, err := readFrom(hears.fd, make([]byte, 1)); n != 0 || err != nil {
					t.Errorf("after the end: %d, %v", n, err)
				}
				hears.write("answer")
				says.expect("answer")
				if err := unix.Shutdown(hears.fd, unix.SHUT_WR); err != nil {
					t.Fatal(err)
				}
				if n, err := readFrom(says.fd, make([]byte, 1)); n != 0 || err != nil {
					t.Errorf("after the other end: %d, %v", n, err)
				}
				clean(t)
			})
		})
	}
}

// holdAll holds everything to the server's address.
func (p *pair) holdAll() *Hold {
	p.t.Helper()
	h, err := start(p.all())
	if err != nil {
		p.t.Fatal(err)
	}
	return h
}

func (p *pair) all() Config {
	return Config{Name: "test", Devices: []string{"wire", "lo"}, Flows: []Flow{{Local: netip.AddrPortFrom(p.serverAddr, 0)}}}
}

// leave takes the server's address off its host, comeBack puts it on again.
func (p *pair) leave() { p.change(netlink.AddrDel) }

func (p *pair) comeBack() {
	p.change(netlink.AddrAdd)
	for begun := time.Now(); ; { // with IPv6 it takes a moment
		routes, err := netlink.RouteGet(p.serverAddr.AsSlice())
		if err == nil && routes[0].Type == unix.RTN_LOCAL {
			return
		}
		if time.Since(begun) > 10*time.Second {
			p.t.Fatal("the address does not come back")
		}
	}
}

func (p *pair) change(f func(netlink.Link, *netlink.Addr) error) {
	p.t.Helper()
	addr, err := netlink.ParseAddr(p.prefix)
	if err != nil {
		p.t.Fatal(err)
	}
	addr.Flags = unix.IFA_F_NODAD
	wire, err := netlink.LinkByName("wire")
	if err == nil {
		err = f(wire, addr)
	}
	if err != nil {
		p.t.Fatal(err)
	}
}
