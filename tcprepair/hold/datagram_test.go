package hold

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/tcprepair/inet"
)

// datagrams makes a socket of UDP at the server's address, and one in the client's network
// that is connected to it.
func (p *pair) datagrams() (server, client end) {
	p.t.Helper()
	open := func() end {
		fd, err := unix.Socket(p.domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		limit := unix.Timeval{Sec: 10}
		if err == nil {
			err = errors.Join(
				unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit),
				unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20))
		}
		if err != nil {
			p.t.Fatal(err)
		}
		p.t.Cleanup(func() { unix.Close(fd) })
		return end{p.t, fd}
	}
	server = open()
	if err := unix.Bind(server.fd, p.address(0)); err != nil {
		p.t.Fatal(err)
	}
	err := p.client(func() error {
		client = open()
		return unix.Connect(client.fd, p.address(int(server.local().Port())))
	})
	if err == nil {
		err = unix.Connect(server.fd, sockaddr(client.local()))
	}
	if err != nil {
		p.t.Fatal(err)
	}
	return server, client
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}

func (e end) send(data []byte) {
	e.t.Helper()
	if n, err := writeTo(e.fd, data); n != len(data) || err != nil {
		e.t.Fatalf("sending %d bytes: %d, %v", len(data), n, err)
	}
}

// sendTogether sends datagrams of that size in one piece, which is taken apart at the
// network card: between the two networks there is none.
func (e end) sendTogether(data []byte, size int) {
	e.t.Helper()
	if err := unix.SetsockoptInt(e.fd, unix.SOL_UDP, unix.UDP_SEGMENT, size); err != nil {
		e.t.Fatal(err)
	}
	e.send(data)
	if err := unix.SetsockoptInt(e.fd, unix.SOL_UDP, unix.UDP_SEGMENT, 0); err != nil {
		e.t.Fatal(err)
	}
}

func (e end) receive(want []byte) {
	e.t.Helper()
	buf := make([]byte, 1<<16)
	n, err := readFrom(e.fd, buf)
	if err != nil {
		e.t.Fatal(err)
	}
	if !bytes.Equal(buf[:n], want) {
		e.t.Errorf("a datagram of %d bytes (%.10x) instead of %d (%.10x)", n, buf[:n], len(want), want)
	}
}

// empty reports that no datagram waits at the socket.
func (e end) empty() bool {
	_, _, err := unix.Recvfrom(e.fd, nil, unix.MSG_DONTWAIT|unix.MSG_PEEK)
	return errors.Is(err, unix.EAGAIN)
}

// sent is what a client sends: small datagrams, such that come in fragments, and such that
// are put together, of together bytes each.
type sent struct {
	datagrams         [][]byte
	captured, packets int
}

const together = 1000

func (p *pair) sendAll(client end) (s sent) {
	p.t.Helper()
	room := 1500 - header4Bytes
	if p.domain == unix.AF_INET6 {
		room = 1500 - header6Bytes - 8
	}
	data := numbers(60_001)
	for i := range 20 {
		data := append([]byte{byte(i)}, data[:100+i]...)
		client.send(data)
		s.datagrams = append(s.datagrams, data)
		s.captured++
		s.packets++
		if i%5 != 0 {
			continue
		}
		large := append([]byte{byte(i)}, numbers(3000*(i+1))...)
		client.send(large)
		s.datagrams = append(s.datagrams, large)
		fragments := (udpBytes + len(large) + room/8*8 - 1) / (room / 8 * 8)
		s.captured += fragments
		s.packets += fragments
		many := append([]byte{byte(i)}, numbers(10*together+i)...)
		client.sendTogether(many, together)
		for ; len(many) > 0; many = many[min(together, len(many)):] {
			s.datagrams = append(s.datagrams, many[:min(together, len(many))])
			s.packets++
		}
		s.captured++
	}
	return s
}

// Datagrams to an address arrive afterwards, in order and as they were sent: small and
// large ones, and such that the kernel has put together.
func TestDatagramsDelivered(t *testing.T) {
	eachFamily(t, func(t *testing.T, p *pair) {
		server, client := p.datagrams()
		client.send([]byte("before"))
		server.receive([]byte("before"))
		h := p.holdAll()
		s := p.sendAll(client)
		h.awaitHeld(t, s.packets)
		if !server.empty() {
			t.Error("a datagram came through")
		}
		h.mu.Lock()
		if h.seen != s.captured || len(h.packets) != s.packets {
			t.Errorf("%d packets captured, %d held, instead of %d and %d", h.seen, len(h.packets), s.captured, s.packets)
		}
		h.mu.Unlock()
		server.send([]byte("goes out"))
		client.receive([]byte("goes out"))
		if err := release(t, h); err != nil {
			t.Fatal(err)
		}
		for _, want := range s.datagrams {
			server.receive(want)
		}
		client.send([]byte("after"))
		server.receive([]byte("after"))
		clean(t)
	})
}

// They go to the host that has the address by then as they would have come from the
// client.
func TestDatagramsForwarded(t *testing.T) {
	eachFamily(t, func(t *testing.T, p *pair) {
		heir := p.watch()
		_, client := p.datagrams()
		h := p.holdAll()
		s := p.sendAll(client)
		h.awaitHeld(t, s.packets)
		p.leave()
		p.bequeath()
		heard := make(chan error, 1)
		go func() {
			err := heir.awaitDatagrams(s)
			if err == nil {
				_, err = writeTo(client.fd, []byte("late"))
			}
			if err == nil {
				err = heir.awaitDatagrams(sent{[][]byte{[]byte("late")}, 1, 1})
			}
			heard <- err
		}()
		if err := errors.Join(h.Forward(t.Context(), 300*time.Millisecond), h.Close()); err != nil {
			t.Error(err)
		}
		if err := <-heard; err != nil {
			t.Error(err)
		}
		clean(t)
	})
}

// awaitDatagrams waits for these from another host: in order, with right checksums.
func (h heir) awaitDatagrams(s sent) error {
	limit := unix.Timeval{Sec: 10}
	if err := unix.SetsockoptTimeval(h.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
		return err
	}
	buf := make([]byte, 1<<16)
	var got []byte
	for packets := 0; packets < s.packets; {
		var n int
		var from unix.Sockaddr
		err := again(func() (err error) {
			n, from, err = unix.Recvfrom(h.fd, buf, 0)
			return err
		})
		if err != nil {
			return fmt.Errorf("waiting for packet %d of %d: %w", packets, s.packets, err)
		}
		p, ok := parse(buf[:n])
		if link, is := from.(*unix.SockaddrLinklayer); !ok || !is || link.Pkttype != unix.PACKET_HOST || p.protocol != protocolUDP {
			continue
		}
		if p.whole() && p.sum() != 0 {
			return fmt.Errorf("the checksum of packet %d is wrong", packets)
		}
		packets++
		if carried := p.bytes[p.at:]; p.whole() || first(p) {
			got = append(got, carried[udpBytes:]...)
		} else {
			got = append(got, carried...)
		}
	}
	if !bytes.Equal(got, bytes.Join(s.datagrams, nil)) {
		return errors.New("datagrams came otherwise than they were sent")
	}
	return nil
}

// first reports the first one of a datagram's fragments: its offset is 0.
func first(p packet) bool {
	if p.isIPv6() {
		place := p.bytes[p.at-6:] // the fragment header is the last one
		return place[0] == 0 && place[1]&0xf8 == 0
	}
	return p.bytes[6]&0x1f == 0 && p.bytes[7] == 0
}

// Who holds connections, or what begins them, holds no datagram.
func TestDatagramsPass(t *testing.T) {
	eachFamily(t, func(t *testing.T, p *pair) {
		server, client := p.datagrams()
		pass := func(what string) {
			client.send([]byte(what))
			server.receive([]byte(what))
		}
		h, err := start(Config{Name: "test", Devices: []string{"wire"}, Flows: []Flow{
			{Local: server.local(), Remote: client.local()}, {Local: server.local()},
		}})
		if err != nil {
			t.Fatal(err)
		}
		pass("ports")
		if err := h.Close(); err != nil {
			t.Fatal(err)
		}
		if h, err = Prepare(p.all()); err != nil {
			t.Fatal(err)
		}
		pass("prepared")
		if err := h.BeginHandshakes(); err != nil {
			t.Fatal(err)
		}
		pass("handshakes")
		if err := h.Close(); err != nil {
			t.Fatal(err)
		}
		clean(t)
	})
}

// An address whose packets are held answers pings.
func TestPingPasses(t *testing.T) {
	eachFamily(t, func(t *testing.T, p *pair) {
		request, answer, protocol := byte(8), byte(0), unix.IPPROTO_ICMP
		if p.domain == unix.AF_INET6 {
			request, answer, protocol = 128, 129, unix.IPPROTO_ICMPV6
		}
		h := p.holdAll()
		ping := []byte{request, 0, 0, 0, 0x12, 0x34, 0, 1} // RFC 792, RFC 4443
		sum := inet.Checksum(ping)                         // the kernel puts in that of IPv6
		ping[2], ping[3] = byte(sum>>8), byte(sum)
		var fd int
		err := p.client(func() (err error) {
			fd, err = unix.Socket(p.domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
			return err
		})
		limit := unix.Timeval{Sec: 10}
		err = errors.Join(err, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit), unix.Sendto(fd, ping, 0, p.address(0)))
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		for answered := false; !answered; {
			buf := make([]byte, 1500)
			n, err := readFrom(fd, buf)
			if err != nil {
				t.Fatal(err)
			}
			buf = buf[:n]
			if p.domain == unix.AF_INET { // the IP header comes with it
				buf = buf[header4Bytes:]
			}
			answered = buf[0] == answer && bytes.HasPrefix(buf[4:], ping[4:])
		}
		if held, lost := h.Held(); held+lost > 0 {
			t.Errorf("%d packets held, %d lost", held, lost)
		}
		if err := h.Close(); err != nil {
			t.Fatal(err)
		}
		clean(t)
	})
}

// A datagram that was damaged on its way stays so, one without a checksum needs none, and
// what programs of the host send through all devices is not held.
func TestDatagramsAsTheyAre(t *testing.T) {
	eachFamily(t, func(t *testing.T, p *pair) {
		server, client := p.datagrams()
		h := p.holdAll()
		forServer := func(text string) packet {
			ports := datagram(int(client.local().Port()), int(server.local().Port()), []byte(text))
			return example(p.domain == unix.AF_INET6, protocolUDP, nil, protocolUDP, ports)
		}
		right, damaged, unsummed := forServer("right"), forServer("damaged"), forServer("unsummed")
		damaged.bytes[len(damaged.bytes)-1]++
		clear(unsummed.checksum()) // not right with IPv6 (RFC 8200, 8.1)
		packets := []packet{damaged, unsummed, right}
		err := p.client(func() error {
			s, err := newSender()
			if err != nil {
				return err
			}
			defer s.close()
			once := packets
			return s.deliver(func() []packet {
				defer func() { once = nil }()
				return once
			}, time.Now())
		})
		if err != nil {
			t.Fatal(err)
		}
		h.awaitHeld(t, len(packets))

		other := clone(right)
		other.bytes[other.at-1]++
		near, err := netlink.LinkByName(nearDevice + "test")
		if err != nil {
			t.Fatal(err)
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		network := uint16(unix.ETH_P_IP)
		if p.domain == unix.AF_INET6 {
			network = unix.ETH_P_IPV6
		}
		to := &unix.SockaddrLinklayer{Protocol: network<<8 | network>>8, Ifindex: near.Attrs().Index, Halen: 6}
		if err := unix.Sendto(fd, other.bytes, 0, to); err != nil {
			t.Fatal(err)
		}
		client.send([]byte("last"))
		h.awaitHeld(t, len(packets)+1)
		if held, _ := h.Held(); held != len(packets)+1 {
			t.Errorf("%d packets held", held)
		}
		if err := release(t, h); err != nil {
			t.Fatal(err)
		}
		if p.domain == unix.AF_INET {
			server.receive([]byte("unsummed"))
		}
		server.receive([]byte("right"))
		server.receive([]byte("last"))
		clean(t)
	})
}
