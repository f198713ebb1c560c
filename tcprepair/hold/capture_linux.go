package hold

import (
	"bytes"
	"errors"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// open begins to capture at the far device. The caller's thread is in its namespace.
func (h *Hold) open(device string) error {
	link, err := netlink.LinkByName(device)
	if err == nil {
		err = netlink.LinkSetUp(link) // a socket at one that is down says so once
	}
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return err
	}
	h.capture = os.NewFile(uintptr(fd), device)
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, mostBytes); err != nil {
		return err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1); err != nil { // SOCK_RAW's alone
		return err
	}
	all := uint16(unix.ETH_P_ALL)
	return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all<<8 | all>>8, Ifindex: link.Attrs().Index})
}

// read takes packets in until the hold is closed.
func (h *Hold) read() {
	kept := h.config.kept() // those with peers are told later, and apart by the rules
	buf := make([]byte, 1<<17)
	for {
		n, err := h.capture.Read(buf)
		if errors.Is(err, unix.EINVAL) {
			// One that was put together in a way that the header cannot tell of
			// (virtio_net_hdr_from_skb): of UDP's, before Linux 6.2, all.
			h.put(nil)
			continue
		}
		if err != nil {
			return
		}
		header, captured, ok := unwrap(buf[:n])
		if !ok {
			continue
		}
		// The kernel and programs that speak to all devices send something, too.
		if p, ok := parse(captured); ok && (kept.match(p) || h.config.Peers && p.protocol == protocolTCP) {
			h.put(header.finish(p))
		}
	}
}

// put keeps what one captured packet has become, or has it lost.
func (h *Hold) put(packets []packet) {
	size := 0
	for i, p := range packets {
		packets[i].bytes = bytes.Clone(p.bytes)
		size += len(p.bytes)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.seen++
	close(h.more)
	h.more = make(chan struct{})
	if len(packets) == 0 || h.bytes+size > mostBytes {
		h.lost++
		return
	}
	h.packets = append(h.packets, packets...)
	h.bytes += size
}

// addresses are those that packets are kept for, and whether datagrams are, too.
type addresses map[netip.Addr]bool

func (c *Config) kept() addresses {
	all := make(addresses)
	for _, f := range c.Flows {
		a := f.Local.Addr().Unmap().WithZone("")
		all[a] = all[a] || f.width() == addressesOnly
	}
	return all
}

// match reports a packet that the rules have held.
func (a addresses) match(p packet) bool {
	datagrams, ok := a[p.destination()]
	return ok && (p.protocol == protocolTCP || p.protocol == protocolUDP && datagrams)
}
