package packet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/tcprepair/inet"
)

// bigEndian: this machine has the order of the network.
var bigEndian = binary.NativeEndian.Uint16([]byte{0, 1}) == 1

// Restore makes a socket of what Look has read on another host. It takes packets at last,
// when it has its filter. The descriptor is non-blocking and closed by exec. The caller needs
// CAP_NET_RAW and CAP_NET_ADMIN. On an error nothing is left.
func Restore(s *Socket) (fd int, err error) {
	if err := s.Validate(); err != nil {
		return -1, err
	}
	if fd, err = unix.Socket(unix.AF_PACKET, s.Type|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
		return -1, err
	}
	if err := s.build(fd); err != nil {
		return -1, errors.Join(fmt.Errorf("restoring a packet socket: %w", err), unix.Close(fd))
	}
	return fd, nil
}

func (s *Socket) build(fd int) error {
	if err := unix.Fchown(fd, int(s.UID), int(s.GID)); err != nil {
		return fmt.Errorf("giving the socket to user %d: %w", s.UID, err)
	}
	if len(s.Filter) > 0 {
		if err := s.Filter.Attach(fd); err != nil {
			return fmt.Errorf("attaching the filter: %w", err)
		}
	}
	for _, p := range []inet.Phase{inet.BeforeBind, inet.WhileSilent} {
		if err := inet.Packet.Set(fd, s.Options, nil, p); err != nil {
			return err
		}
	}
	if s.CopyThreshold != 0 {
		if err := inet.SetInt(fd, unix.SOL_PACKET, unix.PACKET_COPY_THRESH, s.CopyThreshold); err != nil {
			return fmt.Errorf("setting PACKET_COPY_THRESH: %w", err)
		}
	}
	if err := s.Buffers.Settle(fd); err != nil {
		return err
	}
	for i := range s.Memberships {
		if err := s.Memberships[i].join(fd); err != nil {
			return err
		}
	}
	if err := inet.Packet.Set(fd, s.Options, nil, inet.AtLast); err != nil {
		return err
	}
	return s.bind(fd)
}

// bind gives it its protocol and its device. One that is down is an error of the socket for
// its program to be told (packet_do_bind, net/packet/af_packet.c), as if it had gone down now.
func (s *Socket) bind(fd int) error {
	if s.Protocol == 0 && s.Device == "" {
		return nil
	}
	address := unix.SockaddrLinklayer{Protocol: network(s.Protocol)}
	if s.Device != "" {
		device, err := net.InterfaceByName(s.Device)
		if err != nil {
			return fmt.Errorf("binding to %s: %w", s.Device, err)
		}
		address.Ifindex = device.Index
	}
	if err := unix.Bind(fd, &address); err != nil {
		return fmt.Errorf("binding to %q: %w", s.Device, err)
	}
	return nil
}

// join asks for it as often as the program has.
func (m *Membership) join(fd int) error {
	device, err := net.InterfaceByName(m.Device)
	if err != nil {
		return fmt.Errorf("a membership of %s: %w", m.Device, err)
	}
	// struct packet_mreq: ifindex, type[2], alen[2], address[8 or more].
	request := make([]byte, 8+max(8, len(m.Address)))
	binary.NativeEndian.PutUint32(request, uint32(device.Index))
	binary.NativeEndian.PutUint16(request[4:], m.Type)
	binary.NativeEndian.PutUint16(request[6:], uint16(len(m.Address)))
	copy(request[8:], m.Address)
	for range m.Count {
		if err := inet.Set(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, request); err != nil {
			return fmt.Errorf("membership %d of %s: %w", m.Type, m.Device, err)
		}
	}
	return nil
}
