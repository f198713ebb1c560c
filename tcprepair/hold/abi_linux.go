package hold

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/tcprepair/inet"
)

const (
	virtioNetHdrBytes = 10
	ethernetBytes     = 14 // ETH_HLEN (include/uapi/linux/if_ether.h)
)

// virtioNetHdr is struct virtio_net_hdr (include/uapi/linux/virtio_net.h), by which the
// kernel says what network cards have left to do in a packet, or are to.
type virtioNetHdr struct {
	flags      uint8
	gsoType    uint8
	hdrLen     uint16
	gsoSize    uint16
	csumStart  uint16 // counted from the Ethernet header
	csumOffset uint16 // from there
}

// unwrap takes a frame as it is captured with PACKET_VNET_HDR apart. The numbers are the
// host's (vio_le in net/packet/af_packet.c).
func unwrap(captured []byte) (h virtioNetHdr, packet []byte, ok bool) {
	if len(captured) < virtioNetHdrBytes+ethernetBytes {
		return h, nil, false
	}
	number := func(at int) uint16 { return binary.NativeEndian.Uint16(captured[at:]) }
	h = virtioNetHdr{
		flags: captured[0], gsoType: captured[1],
		hdrLen: number(2), gsoSize: number(4), csumStart: number(6), csumOffset: number(8),
	}
	return h, captured[virtioNetHdrBytes+ethernetBytes:], true
}

// encode is the opposite of what unwrap reads.
func (h *virtioNetHdr) encode() []byte {
	b := []byte{h.flags, h.gsoType}
	for _, n := range []uint16{h.hdrLen, h.gsoSize, h.csumStart, h.csumOffset} {
		b = binary.NativeEndian.AppendUint16(b, n)
	}
	return b
}

// finish makes of a captured packet what is, or was, on the wire: nothing, if it was put
// together in a way that is not known. It works in place.
func (h *virtioNetHdr) finish(p packet) []packet {
	switch h.gsoType &^ unix.VIRTIO_NET_HDR_GSO_ECN {
	case unix.VIRTIO_NET_HDR_GSO_NONE:
		if h.flags&unix.VIRTIO_NET_HDR_F_NEEDS_CSUM != 0 {
			p.complete(int(h.csumStart)-ethernetBytes, int(h.csumOffset))
		}
		return []packet{p}
	case unix.VIRTIO_NET_HDR_GSO_TCPV4, unix.VIRTIO_NET_HDR_GSO_TCPV6:
		// The kernel has looked at the checksums (tcp4_gro_receive). This one may be the
		// first segment's (SKB_GSO_FRAGLIST).
		if p.protocol == protocolTCP && p.whole() {
			p.seal()
			return []packet{p}
		}
	case unix.VIRTIO_NET_HDR_GSO_UDP_L4:
		if p.protocol == protocolUDP && p.whole() && h.gsoSize > 0 {
			return p.datagrams(int(h.gsoSize))
		}
	}
	return nil
}

// complete does what was left to a network card: the field has the pseudo header's part
// of the checksum (skb_checksum_help in net/core/dev.c). All others stay as they came:
// what got damaged on its way does not become right.
func (p packet) complete(start, offset int) {
	if start < 0 || start+offset+2 > len(p.bytes) {
		return
	}
	binary.BigEndian.PutUint16(p.bytes[start+offset:], nonzero(inet.Checksum(p.bytes[start:])))
}
