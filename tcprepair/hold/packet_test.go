package hold

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/tcprepair/inet"
)

// example is a packet from 10.9.0.2 or fd09::2 to 10.9.0.1 or fd09::1, whose checksum is
// right. Headers of IPv6 come before what it carries, the first one's number is next.
func example(ipv6 bool, next byte, extensions []byte, protocol byte, carried []byte) packet {
	carried = slices.Concat(extensions, carried)
	var b []byte
	if ipv6 {
		b = make([]byte, header6Bytes)
		b[0], b[6], b[7] = 6<<4, next, 64
		binary.BigEndian.PutUint16(b[4:], uint16(len(carried)))
		copy(b[8:], netip.MustParseAddr("fd09::2").AsSlice())
		copy(b[24:], netip.MustParseAddr("fd09::1").AsSlice())
	} else {
		b = make([]byte, header4Bytes)
		b[0], b[8], b[9] = 4<<4|header4Bytes/4, 64, protocol
		binary.BigEndian.PutUint16(b[2:], uint16(header4Bytes+len(carried)))
		copy(b[12:], []byte{10, 9, 0, 2, 10, 9, 0, 1})
	}
	p := packet{protocol: protocol, at: len(b) + len(extensions), bytes: append(b, carried...)}
	if p.whole() {
		p.seal()
	}
	return p
}

func clone(p packet) packet {
	p.bytes = bytes.Clone(p.bytes)
	return p
}

// segment has an option, the flags ACK, PSH and FIN, and a number that is the last but 99.
func segment(data []byte) []byte {
	b := make([]byte, tcpBytes+4)
	b[12], b[13] = (tcpBytes+4)/4<<4, 0x19
	binary.BigEndian.PutUint32(b[4:], 1<<32-100)
	return append(b, data...)
}

func datagram(from, to int, data []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, uint16(from))
	b = binary.BigEndian.AppendUint16(b, uint16(to))
	b = binary.BigEndian.AppendUint16(b, uint16(udpBytes+len(data)))
	return append(append(b, 0, 0), data...)
}

func numbers(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i * 7)
	}
	return b
}

var bothFamilies = map[string]bool{"IPv4": false, "IPv6": true}

// What a packet carries is found behind extension headers.
func TestParse(t *testing.T) {
	udp := datagram(1, 2, []byte("data"))
	hops, options := []byte{protocolUDP, 1, 15: 0}, []byte{protocolUDP, 0, 7: 0}
	fragment := func(place uint16) []byte {
		return []byte{protocolUDP, 0, byte(place >> 8), byte(place), 0, 0, 0, 1}
	}
	for name, c := range map[string]struct {
		next       byte
		extensions []byte
		fragment   bool
	}{
		"none":               {next: protocolUDP},
		"hop by hop":         {next: extensionHops, extensions: hops},
		"authentication":     {next: extensionAuth, extensions: []byte{protocolUDP, 4, 23: 0}},
		"two":                {next: extensionRouting, extensions: append([]byte{extensionOptions, 0, 7: 0}, options...)},
		"first fragment":     {next: extensionFragment, extensions: fragment(1), fragment: true},
		"next fragment":      {next: extensionFragment, extensions: fragment(8 | 1), fragment: true},
		"last fragment":      {next: extensionFragment, extensions: fragment(8), fragment: true},
		"fragment, all":      {next: extensionFragment, extensions: fragment(0)},
		"options, fragment":  {next: extensionOptions, extensions: append([]byte{extensionFragment, 0, 7: 0}, fragment(8)...), fragment: true},
		"fragment, options":  {next: extensionFragment, extensions: append([]byte{extensionOptions, 0, 0, 1, 7: 0}, options...), fragment: true},
		"fragment, nonsense": {next: extensionFragment, extensions: append([]byte{protocolUDP, 200, 0, 8 | 1, 7: 0}, 0, 200), fragment: true},
	} {
		want := example(true, c.next, c.extensions, protocolUDP, udp)
		if name == "fragment, nonsense" { // that is data then
			want.at -= 2
		}
		want.fragment = c.fragment
		p, ok := parse(append(bytes.Clone(want.bytes), "padding"...))
		if !ok || p.protocol != want.protocol || p.at != want.at || p.fragment != want.fragment || !bytes.Equal(p.bytes, want.bytes) {
			t.Errorf("%s: %+v instead of %+v", name, p, want)
		}
		if !p.fragment && (!p.whole() || p.sum() != 0) {
			t.Errorf("%s: the checksum is wrong", name)
		}
	}
	for place, want := range map[uint16]bool{0: false, 0x4000: false, 0x2000: true, 0x2001: true, 1: true} {
		b := example(false, 0, nil, protocolUDP, udp).bytes
		binary.BigEndian.PutUint16(b[6:], place)
		if p, ok := parse(b); !ok || p.fragment != want || p.protocol != protocolUDP || p.at != header4Bytes || p.whole() == want {
			t.Errorf("with %#x: %+v, %v", place, p, ok)
		}
	}
}

// A checksum of 0 is sent in its other form.
func TestSeal(t *testing.T) {
	for name, ipv6 := range bothFamilies {
		// Data that is all that the rest lacks for a sum of 0.
		p := example(ipv6, protocolUDP, nil, protocolUDP, datagram(1, 2, []byte{0, 0}))
		copy(p.bytes[p.at+udpBytes:], p.checksum())
		p.seal()
		if got := binary.BigEndian.Uint16(p.checksum()); got != 0xffff || p.sum() != 0 {
			t.Errorf("%s: %#x", name, got)
		}
	}
}

// A packet that goes back into the kernel is the same when it has come out of it, and is
// left to be cut if it is too long.
func TestWrap(t *testing.T) {
	for name, ipv6 := range bothFamilies {
		for _, c := range []struct {
			bytes      int
			right, cut bool
		}{{1000, true, false}, {1000, false, false}, {30_000, true, true}, {30_000, false, false}} {
			want := example(ipv6, protocolTCP, nil, protocolTCP, segment(numbers(c.bytes)))
			if !c.right {
				want.bytes[len(want.bytes)-1]++
			}
			before := bytes.Clone(want.bytes)
			h, b, ok := unwrap(want.wrap(1500))
			if !ok || (h.gsoType != unix.VIRTIO_NET_HDR_GSO_NONE) != c.cut || !bytes.Equal(want.bytes, before) {
				t.Errorf("%s: %d bytes: %+v", name, c.bytes, h)
			}
			if data, _ := want.data(); c.cut && (int(h.gsoSize) != 1500-data || int(h.hdrLen) != ethernetBytes+data) {
				t.Errorf("%s: %+v for headers of %d bytes", name, h, data)
			}
			p, ok := parse(b)
			if !ok {
				t.Fatalf("%s: no packet is left", name)
			}
			if h.flags&unix.VIRTIO_NET_HDR_F_NEEDS_CSUM != 0 {
				p.complete(int(h.csumStart)-ethernetBytes, int(h.csumOffset))
			}
			if !bytes.Equal(p.bytes, want.bytes) {
				t.Errorf("%s: %d bytes have become others", name, c.bytes)
			}
		}
	}
}

// What was put together on its way in is cut for its way out, and is the same then.
func TestSegments(t *testing.T) {
	for name, ipv6 := range bothFamilies {
		data := numbers(10_000)
		whole := example(ipv6, protocolTCP, nil, protocolTCP, segment(data))
		const mtu = 1300
		var got []byte
		pieces := whole.segments(mtu)
		for i, piece := range pieces {
			p, ok := parse(piece.bytes)
			if !ok || len(p.bytes) != len(piece.bytes) || len(p.bytes) > mtu || p.sum() != 0 {
				t.Fatalf("%s: piece %d is %+v, %v", name, i, p, ok)
			}
			tcp := p.bytes[p.at:]
			if seq := binary.BigEndian.Uint32(tcp[4:]); seq != uint32(1<<32-100+len(got)) {
				t.Errorf("%s: piece %d begins at %d", name, i, seq)
			}
			if last := i == len(pieces)-1; (tcp[13] == 0x19) != last || tcp[13]&0x10 == 0 {
				t.Errorf("%s: piece %d of %d has the flags %#x", name, i, len(pieces), tcp[13])
			}
			got = append(got, tcp[tcpBytes+4:]...)
		}
		if !bytes.Equal(got, data) {
			t.Errorf("%s: the pieces are not the whole", name)
		}
	}
}

// Datagrams that were put together are taken apart as they were, with a checksum if they
// had one.
func TestPutTogether(t *testing.T) {
	for name, ipv6 := range bothFamilies {
		for _, summed := range []bool{true, false} {
			data := numbers(2500)
			whole := example(ipv6, protocolUDP, nil, protocolUDP, datagram(1, 2, data))
			if !summed {
				clear(whole.checksum())
			}
			var got []byte
			h := virtioNetHdr{gsoType: unix.VIRTIO_NET_HDR_GSO_UDP_L4, gsoSize: 1000}
			pieces := h.finish(whole)
			for i, size := range []int{1000, 1000, 500} {
				p, ok := parse(pieces[i].bytes)
				if !ok || len(p.bytes) != p.at+udpBytes+size {
					t.Fatalf("%s: datagram %d is %+v, %v", name, i, p, ok)
				}
				if summed && p.sum() != 0 || !summed && binary.BigEndian.Uint16(p.checksum()) != 0 {
					t.Errorf("%s: datagram %d has the checksum %x", name, i, p.checksum())
				}
				if n := binary.BigEndian.Uint16(p.bytes[p.at+4:]); int(n) != udpBytes+size {
					t.Errorf("%s: datagram %d has the length %d", name, i, n)
				}
				if id := binary.BigEndian.Uint16(p.bytes[4:]); !ipv6 && int(id) != i {
					t.Errorf("%s: datagram %d has the ID %d", name, i, id)
				}
				got = append(got, p.bytes[p.at+udpBytes:]...)
			}
			if !bytes.Equal(got, data) || len(pieces) != 3 {
				t.Errorf("%s: the %d pieces are not the whole", name, len(pieces))
			}
		}
	}
}

// A checksum is put in where it was left to a network card, and nowhere else.
func TestFinish(t *testing.T) {
	for name, ipv6 := range bothFamilies {
		addressesAt := 12
		if ipv6 {
			addressesAt = 8
		}
		for protocol, carried := range map[byte][]byte{protocolTCP: segment(numbers(33)), protocolUDP: datagram(1, 2, numbers(33))} {
			right := example(ipv6, protocol, nil, protocol, carried)
			wrong, unsummed, partial := clone(right), clone(right), clone(right)
			wrong.bytes[len(wrong.bytes)-1]++
			clear(unsummed.checksum())
			// The pseudo header's part of the sum, not inverted.
			pseudo := inet.Checksum(right.bytes[addressesAt:right.at], []byte{0, protocol, 0, byte(len(carried))})
			binary.BigEndian.PutUint16(partial.checksum(), ^pseudo)
			card := virtioNetHdr{
				flags:     unix.VIRTIO_NET_HDR_F_NEEDS_CSUM,
				csumStart: uint16(ethernetBytes + right.at), csumOffset: uint16(cap(right.bytes[right.at:]) - cap(right.checksum())),
			}
			for what, c := range map[string]struct {
				h       virtioNetHdr
				p, want packet
			}{
				"right": {p: right, want: right}, "wrong": {p: wrong, want: wrong},
				"none": {p: unsummed, want: unsummed}, "a part": {card, partial, right},
				"checked": {virtioNetHdr{flags: unix.VIRTIO_NET_HDR_F_DATA_VALID}, right, right},
			} {
				if got := c.h.finish(clone(c.p)); len(got) != 1 || !bytes.Equal(got[0].bytes, c.want.bytes) {
					t.Errorf("%s, %d: %s: %+v instead of %+v", name, protocol, what, got, c.want)
				}
			}
		}
		p := example(ipv6, protocolTCP, nil, protocolTCP, segment(numbers(3000)))
		want := bytes.Clone(p.bytes)
		p.checksum()[0]++ // the first segment's
		for gsoType, known := range map[uint8]bool{
			unix.VIRTIO_NET_HDR_GSO_TCPV4: true, unix.VIRTIO_NET_HDR_GSO_TCPV6 | unix.VIRTIO_NET_HDR_GSO_ECN: true,
			unix.VIRTIO_NET_HDR_GSO_UDP_L4: false, unix.VIRTIO_NET_HDR_GSO_UDP: false, 77: false,
		} {
			h := virtioNetHdr{gsoType: gsoType, gsoSize: 1000}
			if got := h.finish(p); (len(got) == 1 && bytes.Equal(got[0].bytes, want)) != known {
				t.Errorf("%s: put together as %d it is %+v", name, gsoType, got)
			}
		}
	}
}

// Only what the rules match is kept.
func TestMatch(t *testing.T) {
	c := Config{Flows: []Flow{
		{Local: netip.MustParseAddrPort("[::ffff:10.9.0.1]:80")},
		{Local: netip.MustParseAddrPort("[fd09::1]:80")},
		{Local: netip.MustParseAddrPort("[fd09::1%eth0]:0")},
	}}
	kept := c.kept()
	for protocol, want := range map[byte][2]bool{protocolTCP: {true, true}, protocolUDP: {false, true}, unix.IPPROTO_ICMP: {}, unix.IPPROTO_ICMPV6: {}} {
		for i, ipv6 := range []bool{false, true} {
			p := example(ipv6, protocol, nil, protocol, make([]byte, 40))
			if got := kept.match(p); got != want[i] {
				t.Errorf("IPv6 %v, protocol %d: %v", ipv6, protocol, got)
			}
			p.bytes[p.at-1]++
			if kept.match(p) {
				t.Errorf("IPv6 %v, protocol %d, for somebody else", ipv6, protocol)
			}
		}
	}
}

func TestSizes(t *testing.T) {
	if n := binary.Size(virtioNetHdr{}); n != virtioNetHdrBytes {
		t.Errorf("the header has %d bytes", n)
	}
}

// frame is a packet as it is captured.
func frame(h virtioNetHdr, p packet) []byte {
	return slices.Concat(h.encode(), make([]byte, ethernetBytes), p.bytes)
}

// frames are such that something is to be done with.
func frames() [][]byte {
	card := virtioNetHdr{flags: unix.VIRTIO_NET_HDR_F_NEEDS_CSUM, csumStart: 40, csumOffset: 6}
	together := virtioNetHdr{gsoType: unix.VIRTIO_NET_HDR_GSO_UDP_L4, gsoSize: 3}
	segments := virtioNetHdr{gsoType: unix.VIRTIO_NET_HDR_GSO_TCPV4, gsoSize: 3}
	extensions := []byte{extensionFragment, 0, 7: 0, 8: protocolUDP, 15: 0}
	all := [][]byte{frame(card, example(true, extensionHops, extensions, protocolUDP, datagram(1, 2, nil)))}
	for _, ipv6 := range bothFamilies {
		all = append(all,
			frame(card, example(ipv6, protocolUDP, nil, protocolUDP, datagram(1, 2, numbers(9)))),
			frame(together, example(ipv6, protocolUDP, nil, protocolUDP, datagram(1, 2, numbers(10)))),
			frame(segments, example(ipv6, protocolTCP, nil, protocolTCP, segment(numbers(11)))))
	}
	return all
}

// handle does with a frame all that is done with packets. What comes of one is packets.
func handle(t *testing.T, captured []byte, mtu int) {
	t.Helper()
	h, b, ok := unwrap(captured)
	if !ok {
		return
	}
	p, ok := parse(b)
	if !ok {
		return
	}
	p.destination()
	for _, finished := range h.finish(p) {
		pieces := []packet{finished}
		if finished.protocol == protocolTCP && finished.whole() {
			pieces = finished.segments(mtu)
		}
		for _, piece := range pieces {
			if again, ok := parse(piece.bytes); !ok || len(again.bytes) != len(piece.bytes) {
				t.Errorf("%x has become %x", captured, piece.bytes)
			}
		}
	}
}

// Nothing panics, whatever is captured.
func TestGarbage(t *testing.T) {
	for _, captured := range frames() {
		for n := range captured {
			for mtu := range 80 {
				handle(t, captured[:n], mtu)
				for _, change := range []byte{1, 0x80, 0xff} {
					changed := bytes.Clone(captured)
					changed[n] ^= change
					handle(t, changed, mtu)
				}
			}
		}
	}
}

func FuzzCaptured(f *testing.F) {
	for _, captured := range frames() {
		f.Add(captured, uint16(80))
	}
	f.Fuzz(func(t *testing.T, captured []byte, mtu uint16) { handle(t, captured, int(mtu)) })
}
