package hold

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/pagurus-project/pagurus/tcprepair/inet"
)

const (
	header4Bytes = 20
	header6Bytes = 40
	tcpBytes     = 20
	udpBytes     = 8
)

// Protocols, and extension headers of IPv6 (IANA's Protocol Numbers).
const (
	protocolTCP       = 6
	protocolUDP       = 17
	extensionHops     = 0
	extensionRouting  = 43
	extensionFragment = 44
	extensionAuth     = 51
	extensionOptions  = 60
)

// A packet is one of IP.
type packet struct {
	bytes    []byte // from the IP header on
	protocol byte   // of what it carries, behind the extension headers of IPv6
	at       int    // where that begins
	fragment bool   // it carries a part of that, maybe the first
}

// parse finds the packet at the beginning of what was captured, if it is there as a
// whole. Network cards fill short ones up.
func parse(captured []byte) (packet, bool) {
	switch {
	case len(captured) >= header4Bytes && captured[0]>>4 == 4:
		return parse4(captured)
	case len(captured) >= header6Bytes && captured[0]>>4 == 6:
		return parse6(captured)
	}
	return packet{}, false
}

func parse4(captured []byte) (packet, bool) {
	const partial = 0x3fff // "more fragments" and the offset (RFC 791, 3.1)
	p := packet{
		protocol: captured[9], at: int(captured[0]&0xf) * 4,
		fragment: binary.BigEndian.Uint16(captured[6:])&partial != 0,
	}
	length := int(binary.BigEndian.Uint16(captured[2:]))
	if p.at < header4Bytes || length < p.at || length > len(captured) {
		return packet{}, false
	}
	p.bytes = captured[:length]
	return p, true
}

// parse6 looks behind the headers that the kernel looks behind (ipv6_find_hdr), as the
// rules match what is there.
func parse6(captured []byte) (packet, bool) {
	const offset, more = 0xfff8, 1 // of a fragment (RFC 8200, 4.5)
	length := header6Bytes + int(binary.BigEndian.Uint16(captured[4:]))
	if length > len(captured) {
		return packet{}, false
	}
	p := packet{bytes: captured[:length], protocol: captured[6], at: header6Bytes}
	for first := true; first; {
		header, size := p.bytes[p.at:], 0
		switch p.protocol {
		case extensionHops, extensionRouting, extensionOptions, extensionFragment, extensionAuth:
			if len(header) < 8 {
				return packet{}, false
			}
			size = (int(header[1]) + 1) * 8
		default:
			return p, true
		}
		switch p.protocol {
		case extensionAuth:
			size = (int(header[1]) + 2) * 4 // RFC 4302, 2.2
		case extensionFragment:
			size = 8
			place := binary.BigEndian.Uint16(header[2:])
			p.fragment = p.fragment || place&(offset|more) != 0
			first = place&offset == 0
		}
		if size > len(header) {
			return packet{}, false
		}
		p.protocol, p.at = header[0], p.at+size
	}
	return p, true
}

func (p packet) isIPv6() bool { return p.bytes[0]>>4 == 6 }

func (p packet) destination() netip.Addr {
	if p.isIPv6() {
		return netip.AddrFrom16([16]byte(p.bytes[24:40]))
	}
	return netip.AddrFrom4([4]byte(p.bytes[16:20]))
}

// whole reports a packet with all of a segment or a datagram, its header at least.
func (p packet) whole() bool {
	carried := len(p.bytes) - p.at
	return !p.fragment && (p.protocol == protocolTCP && carried >= tcpBytes || p.protocol == protocolUDP && carried >= udpBytes)
}

// sum is the checksum of what a whole packet carries with its pseudo header: 0, if the
// one that it has is right.
func (p packet) sum() uint16 { return inet.Checksum(p.pseudo(), p.bytes[p.at:]) }

// pseudo is the pseudo header: those of both versions (RFC 9293, 3.1; RFC 8200, 8.1) sum
// up alike.
func (p packet) pseudo() []byte {
	addresses := p.bytes[12:20]
	if p.isIPv6() {
		addresses = p.bytes[8:40]
	}
	rest := []byte{0, p.protocol}
	return slices.Concat(addresses, binary.BigEndian.AppendUint32(rest, uint32(len(p.bytes)-p.at)))
}

// seal gives a whole packet the checksum of what it carries.
func (p packet) seal() {
	field := p.checksum()
	clear(field)
	binary.BigEndian.PutUint16(field, nonzero(p.sum()))
}

// checksum is where a whole packet has it.
func (p packet) checksum() []byte {
	offset := 16 // RFC 9293, 3.1
	if p.protocol == protocolUDP {
		offset = 6 // RFC 768
	}
	return p.bytes[p.at+offset:][:2]
}

// nonzero is the other form of 0, which says that there is no checksum (RFC 768).
func nonzero(sum uint16) uint16 { return cmp.Or(sum, 0xffff) }

// data is where that of a whole packet's TCP segment begins.
func (p packet) data() (at int, ok bool) {
	at = p.at + int(p.bytes[p.at+12]>>4)*4
	return at, at >= p.at+tcpBytes && at <= len(p.bytes)
}

// segments makes packets that fit of a whole one with a TCP segment that is too long,
// each with the headers of it.
func (p packet) segments(mtu int) []packet {
	const fin, psh = 1 << 0, 1 << 3 // of the last one alone
	data, ok := p.data()
	room := mtu - data
	if room <= 0 || !ok {
		return []packet{p}
	}
	pieces := p.pieces(data, room)
	for i, piece := range pieces {
		tcp := piece.bytes[p.at:]
		binary.BigEndian.PutUint32(tcp[4:], binary.BigEndian.Uint32(tcp[4:])+uint32(i*room))
		if i < len(pieces)-1 {
			tcp[13] &^= fin | psh
		}
		piece.seal()
	}
	return pieces
}

// datagrams takes apart those of one size, but for the last one, that were put together
// to a whole packet.
func (p packet) datagrams(size int) []packet {
	summed := binary.BigEndian.Uint16(p.checksum()) != 0
	pieces := p.pieces(p.at+udpBytes, size)
	for _, piece := range pieces {
		udp := piece.bytes[p.at:]
		binary.BigEndian.PutUint16(udp[4:], uint16(len(udp)))
		if summed {
			piece.seal()
		}
	}
	return pieces
}

// pieces are packets with the headers, which end where the data begins, and so many
// bytes of it each.
func (p packet) pieces(data, size int) []packet {
	var pieces []packet
	for from := data; from < len(p.bytes); from += size {
		piece := p
		piece.bytes = append(p.bytes[:data:data], p.bytes[from:min(from+size, len(p.bytes))]...)
		if p.isIPv6() {
			binary.BigEndian.PutUint16(piece.bytes[4:], uint16(len(piece.bytes)-header6Bytes))
		} else {
			// Each has an ID of its own, as from the kernel (inet_gso_segment), which sums
			// up the header (raw(7)).
			binary.BigEndian.PutUint16(piece.bytes[2:], uint16(len(piece.bytes)))
			binary.BigEndian.PutUint16(piece.bytes[4:], binary.BigEndian.Uint16(p.bytes[4:])+uint16(len(pieces)))
		}
		pieces = append(pieces, piece)
	}
	return pieces
}
