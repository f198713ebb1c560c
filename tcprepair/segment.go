package tcprepair

import (
	"encoding/binary"
	"net/netip"

	"github.com/pagurus-project/pagurus/tcprepair/inet"
)

// Flags of a segment (RFC 9293, 3.1).
const (
	flagFIN = 1 << 0
	flagRST = 1 << 2
	flagACK = 1 << 4
)

// A segment is one without options, but for timestamps.
type segment struct {
	from, to netip.AddrPort
	seq, ack uint32
	flags    byte
	window   uint16
	stamps   *stamps // nil: it has none
	data     []byte
}

// stamps are the sender's timestamp and that of the other end which it repeats (RFC 7323, 3).
type stamps struct{ value, echo uint32 }

// option is the TCP option, padded.
func (s *stamps) option() []byte {
	const nop, kind, length = 1, optionTimestamps, 10
	b := []byte{nop, nop, kind, length}
	b = binary.BigEndian.AppendUint32(b, s.value)
	return binary.BigEndian.AppendUint32(b, s.echo)
}

const (
	headerBytes  = 20 // of TCP and of IPv4
	header6Bytes = 40
	protocolTCP  = 6
	hops         = 64
)

// packet is the segment with its IP header, checksums included. Addresses of
// IPv4 in IPv6 notation make an IPv4 packet.
func (s *segment) packet() []byte {
	from, to := s.from.Addr().Unmap(), s.to.Addr().Unmap()
	tcp := make([]byte, headerBytes, headerBytes+len(s.data))
	binary.BigEndian.PutUint16(tcp[0:], s.from.Port())
	binary.BigEndian.PutUint16(tcp[2:], s.to.Port())
	binary.BigEndian.PutUint32(tcp[4:], s.seq)
	binary.BigEndian.PutUint32(tcp[8:], s.ack)
	tcp[13] = s.flags
	binary.BigEndian.PutUint16(tcp[14:], s.window)
	if s.stamps != nil {
		tcp = append(tcp, s.stamps.option()...)
	}
	tcp[12] = byte(len(tcp) / 4 << 4)
	tcp = append(tcp, s.data...)

	var ip []byte
	if from.Is4() {
		ip = make([]byte, headerBytes)
		ip[0] = 4<<4 | headerBytes/4
		binary.BigEndian.PutUint16(ip[2:], uint16(headerBytes+len(tcp)))
		ip[8], ip[9] = hops, protocolTCP
		copy(ip[12:], from.AsSlice())
		copy(ip[16:], to.AsSlice())
		binary.BigEndian.PutUint16(ip[10:], inet.Checksum(ip))
	} else {
		ip = make([]byte, header6Bytes)
		ip[0] = 6 << 4
		binary.BigEndian.PutUint16(ip[4:], uint16(len(tcp)))
		ip[6], ip[7] = protocolTCP, hops
		copy(ip[8:], from.AsSlice())
		copy(ip[24:], to.AsSlice())
	}
	packet := append(ip, tcp...)
	seal(packet, len(ip))
	return packet
}

// seal puts the checksum of its segment, which begins at the given place, into an
// IP packet.
func seal(packet []byte, at int) {
	const offset = 16 // in the TCP header
	addresses := packet[12:20]
	if packet[0]>>4 == 6 {
		addresses = packet[8:40]
	}
	tcp := packet[at:]
	binary.BigEndian.PutUint16(tcp[offset:], 0)
	// The pseudo header of both (RFC 9293, 3.1; RFC 8200, 8.1) sums up alike.
	rest := binary.BigEndian.AppendUint32([]byte{0, protocolTCP}, uint32(len(tcp)))
	binary.BigEndian.PutUint16(tcp[offset:], inet.Checksum(addresses, rest, tcp))
}
