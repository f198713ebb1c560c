package hold

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/tcprepair/inet"
)

// Device is the one at which Reinject has packets come in.
func (h *Hold) Device() string { return nearDevice + h.config.Name }

// Reinject has what is held come in once more, at the hold's own device, for a rule at its
// ingress that sends it to another host though the address is this one's (package
// forward). What no rule takes is lost: this host's own stack is never given anything.
// Segments that were put together leave in pieces that fit the MTU, in bytes, of the way
// that they take then.
//
// When little is left, redirect is called: from then on a rule is to take what comes in at
// the other devices, too, before it is held. Nothing is held any more after that, and
// Close may follow. All flows must have both ends. An error of redirect ends it.
func (h *Hold) Reinject(ctx context.Context, mtu int, redirect func() error) error {
	for _, f := range h.config.Flows {
		if f.width() != withPeers {
			return fmt.Errorf("%w: reinjecting what anybody sends to %v", ErrInvalid, f.Local)
		}
	}
	errs := []error{h.reinject(mtu)}
	if err := redirect(); err != nil {
		return errors.Join(append(errs, err)...)
	}
	settle()
	held, err := counted(h.config.Name)
	if err == nil {
		err = h.await(ctx, held)
	}
	return errors.Join(append(errs, err, h.reinject(mtu))...)
}

// reinject sends what is held, again and again until there is nothing, or not for too long,
// whatever becomes of one packet.
func (h *Hold) reinject(mtu int) error {
	var errs []error
	for until := time.Now().Add(deliverFor); ; {
		packets := h.take()
		for _, p := range packets {
			if _, err := h.capture.Write(p.wrap(mtu)); err != nil {
				errs = append(errs, fmt.Errorf("reinjecting a packet of %d bytes: %w", len(p.bytes), err))
			}
		}
		if len(packets) == 0 || time.Now().After(until) {
			return errors.Join(errs...)
		}
	}
}

// nobody is to whom frames are addressed, so that the host's stack takes none of them for
// its own (PACKET_OTHERHOST): a local address (IEEE 802) that is not the device's, but for a
// chance that it made up just this one.
var nobody = [6]byte{0x02, 'p', 'g', 'h', 0, 0}

// wrap makes a frame of a packet as PACKET_VNET_HDR has it: nothing is left to do, but what
// is longer than the MTU is to be cut by the kernel.
func (p packet) wrap(mtu int) []byte {
	var h virtioNetHdr
	network := uint16(unix.ETH_P_IP)
	if p.isIPv6() {
		network = unix.ETH_P_IPV6
	}
	carried := p
	if len(p.bytes) > mtu && p.protocol == protocolTCP && p.whole() && p.sum() == 0 { // else it is damaged: the pieces would not be
		if data, ok := p.data(); ok && data < mtu {
			h = virtioNetHdr{
				flags: unix.VIRTIO_NET_HDR_F_NEEDS_CSUM, gsoType: unix.VIRTIO_NET_HDR_GSO_TCPV4,
				hdrLen: uint16(ethernetBytes + data), gsoSize: uint16(mtu - data),
				csumStart: uint16(ethernetBytes + p.at), csumOffset: 16, // RFC 9293, 3.1
			}
			if p.isIPv6() {
				h.gsoType = unix.VIRTIO_NET_HDR_GSO_TCPV6
			}
			carried.bytes = bytes.Clone(p.bytes)
			binary.BigEndian.PutUint16(carried.checksum(), ^inet.Checksum(p.pseudo()))
		}
	}
	return slices.Concat(h.encode(), nobody[:], nobody[:], binary.BigEndian.AppendUint16(nil, network), carried.bytes)
}
