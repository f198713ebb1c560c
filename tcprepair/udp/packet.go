package udp

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/tcprepair/inet"
)

const (
	headerBytes  = 8
	header4Bytes = 20
	header6Bytes = 40
)

// packet is the datagram with its headers, checksums included (RFC 768, RFC 8200).
func (d *Datagram) packet() []byte {
	from, to := d.From.Addr().AsSlice(), d.To.Addr().AsSlice()
	length := headerBytes + len(d.Data)
	udp := make([]byte, headerBytes, length)
	binary.BigEndian.PutUint16(udp[0:], d.From.Port())
	binary.BigEndian.PutUint16(udp[2:], d.To.Port())
	binary.BigEndian.PutUint16(udp[4:], uint16(length))
	udp = append(udp, d.Data...)
	rest := binary.BigEndian.AppendUint32([]byte{0, unix.IPPROTO_UDP}, uint32(length))
	sum := inet.Checksum(from, to, rest, udp)
	if sum == 0 { // that would mean none
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(udp[6:], sum)

	var ip []byte
	if d.To.Addr().Is4() {
		ip = make([]byte, header4Bytes)
		ip[0], ip[1] = 4<<4|header4Bytes/4, d.Class
		binary.BigEndian.PutUint16(ip[2:], uint16(header4Bytes+length))
		ip[8], ip[9] = d.Hops, unix.IPPROTO_UDP
		copy(ip[12:], from)
		copy(ip[16:], to)
		binary.BigEndian.PutUint16(ip[10:], inet.Checksum(ip))
	} else {
		ip = make([]byte, header6Bytes)
		binary.BigEndian.PutUint16(ip[0:], 6<<12|uint16(d.Class)<<4)
		binary.BigEndian.PutUint16(ip[4:], uint16(length))
		ip[6], ip[7] = unix.IPPROTO_UDP, d.Hops
		copy(ip[8:], from)
		copy(ip[24:], to)
	}
	return append(ip, udp...)
}
