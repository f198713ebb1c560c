package address

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Announce tells the neighbours that an address is here. One announcement may be
// lost: it is to be repeated a few times within seconds (RFC 5227, section 2.3;
// RFC 4861, section 7.2.6).
func Announce(p netip.Prefix) error {
	if err := announce(p); err != nil {
		return fmt.Errorf("announcing %s: %w", p.Addr(), err)
	}
	return nil
}

func announce(p netip.Prefix) error {
	device, err := deviceOf(p)
	if err != nil {
		return err
	}
	link := device.Attrs()
	if link.Flags&net.FlagLoopback != 0 || len(link.HardwareAddr) != ethernetBytes {
		return nil // nobody asks for addresses there
	}
	if p.Addr().Is4() {
		return announceARP(link, p.Addr())
	}
	return announceNeighbour(link, p.Addr())
}

const ethernetBytes = 6

var broadcast = [8]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// announceARP broadcasts the address both as a question for itself and as an
// answer that nobody asked for: some listen to the one, some to the other
// (RFC 5227, section 3).
func announceARP(link *netlink.LinkAttrs, a netip.Addr) error {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	// The kernel waits for all processors (packet_release), tens of milliseconds, and
	// the process that the address has come with stands still.
	defer func() { go unix.Close(fd) }()
	to := &unix.SockaddrLinklayer{Protocol: bigEndian(unix.ETH_P_ARP), Ifindex: link.Index, Halen: ethernetBytes, Addr: broadcast}
	const request, reply = 1, 2
	for _, operation := range []uint16{request, reply} {
		if err := unix.Sendto(fd, arpPacket(operation, link.HardwareAddr, a), 0, to); err != nil {
			return err
		}
	}
	return nil
}

// arpPacket has the address as sender and as target (RFC 826).
func arpPacket(operation uint16, hardware net.HardwareAddr, a netip.Addr) []byte {
	const ethernet = 1
	p := binary.BigEndian.AppendUint16(nil, ethernet)
	p = binary.BigEndian.AppendUint16(p, unix.ETH_P_IP)
	p = append(p, ethernetBytes, 4)
	p = binary.BigEndian.AppendUint16(p, operation)
	p = append(p, hardware...)
	p = append(p, a.AsSlice()...)
	if operation == 1 {
		p = append(p, make([]byte, ethernetBytes)...) // not known, it says
	} else {
		p = append(p, hardware...)
	}
	return append(p, a.AsSlice()...)
}

// announceNeighbour sends an unsolicited neighbour advertisement that overrides
// what is known (RFC 4861, sections 4.4 and 7.2.6).
func announceNeighbour(link *netlink.LinkAttrs, a netip.Addr) (err error) {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMPV6)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	// Those with another hop limit have come through a router and are not believed.
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 255); err != nil {
		return err
	}
	if err := unix.Bind(fd, &unix.SockaddrInet6{Addr: a.As16()}); err != nil {
		return err
	}
	allNodes := netip.MustParseAddr("ff02::1")
	return unix.Sendto(fd, advertisement(link.HardwareAddr, a), 0, &unix.SockaddrInet6{Addr: allNodes.As16(), ZoneId: uint32(link.Index)})
}

// advertisement is the message; the kernel fills in the checksum.
func advertisement(hardware net.HardwareAddr, a netip.Addr) []byte {
	const (
		neighborAdvertisement = 136
		override              = 0x20
		targetLinkLayer       = 2
		inEights              = 1
	)
	p := []byte{neighborAdvertisement, 0, 0, 0, override, 0, 0, 0}
	p = append(p, a.AsSlice()...)
	p = append(p, targetLinkLayer, inEights)
	return append(p, hardware...)
}

func bigEndian(n uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, n))
}
