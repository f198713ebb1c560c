package udp

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/tcprepair/inet"
)

// ipv6UnicastIF is IPV6_UNICAST_IF (include/uapi/linux/in6.h).
const ipv6UnicastIF = 76

// readDevices reads through which devices a socket sends. One that was named for groups by
// its number to a socket of IPv4 is not told (struct ip_mreqn without an address).
func (s *Socket) readDevices(fd int) error {
	level, name := unix.SOL_IP, unix.IP_UNICAST_IF
	if s.IPv6 {
		level, name = unix.SOL_IPV6, ipv6UnicastIF
	}
	index, err := inet.GetInt(fd, level, name)
	if err != nil {
		return fmt.Errorf("reading the device that it sends through: %w", err)
	}
	// In the order of the network, to be mistaken for an address (ip(7)).
	if s.Device, err = deviceName(swap(index)); err != nil {
		return err
	}
	if s.IPv6 {
		if index, err = inet.GetInt(fd, unix.SOL_IPV6, unix.IPV6_MULTICAST_IF); err == nil {
			s.GroupDevice, err = deviceName(index)
		}
	} else {
		var address []byte
		if address, err = inet.Get(fd, unix.SOL_IP, unix.IP_MULTICAST_IF, 4); err == nil && len(address) == 4 {
			s.GroupDevice, err = deviceWith(netip.AddrFrom4([4]byte(address)))
		}
	}
	if err != nil {
		return fmt.Errorf("reading the device for groups: %w", err)
	}
	return nil
}

func swap(n uint32) uint32 {
	var b [4]byte
	binary.NativeEndian.PutUint32(b[:], n)
	return binary.BigEndian.Uint32(b[:])
}

// deviceName is the name of a device; 0 means any.
func deviceName(index uint32) (string, error) {
	if index == 0 {
		return "", nil
	}
	d, err := net.InterfaceByIndex(int(index))
	if err != nil {
		return "", fmt.Errorf("a UDP socket that sends through device %d, which is gone, %w", index, ErrUnsupported)
	}
	return d.Name, nil
}

// deviceWith is the name of the device that has an address.
func deviceWith(a netip.Addr) (string, error) {
	if a.IsUnspecified() {
		return "", nil
	}
	devices, err := net.Interfaces()
	if err != nil {
		return "", err
	}
	for _, d := range devices {
		addresses, _ := d.Addrs() // of one that is gone there are none
		for _, has := range addresses {
			if p, err := netip.ParsePrefix(has.String()); err == nil && p.Addr() == a {
				return d.Name, nil
			}
		}
	}
	return "", fmt.Errorf("a UDP socket that sends to groups from %v, an address which is gone, %w", a, ErrUnsupported)
}

// setDevices is the other half of readDevices.
func (s *Socket) setDevices(fd int) error {
	if s.Device != "" {
		d, err := net.InterfaceByName(s.Device)
		if err != nil {
			return fmt.Errorf("sending through %s: %w", s.Device, err)
		}
		level, name := unix.SOL_IP, unix.IP_UNICAST_IF
		if s.IPv6 {
			level, name = unix.SOL_IPV6, ipv6UnicastIF
		}
		if err := inet.SetInt(fd, level, name, swap(uint32(d.Index))); err != nil {
			return fmt.Errorf("sending through %s: %w", s.Device, err)
		}
	}
	if s.GroupDevice == "" {
		return nil
	}
	d, err := net.InterfaceByName(s.GroupDevice)
	switch {
	case err != nil:
	case s.IPv6:
		err = unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_MULTICAST_IF, d.Index)
	default:
		err = s.setGroupDevice(fd, d)
	}
	if err != nil {
		return fmt.Errorf("sending to groups through %s: %w", s.GroupDevice, err)
	}
	return nil
}

// setGroupDevice names a device with its address, as that alone is told again.
func (s *Socket) setGroupDevice(fd int, d *net.Interface) error {
	request := unix.IPMreqn{Ifindex: int32(d.Index)}
	addresses, err := d.Addrs()
	if err != nil {
		return err
	}
	for _, has := range addresses {
		if p, err := netip.ParsePrefix(has.String()); err == nil && p.Addr().Is4() {
			request.Address = p.Addr().As4()
			break
		}
	}
	return unix.SetsockoptIPMreqn(fd, unix.SOL_IP, unix.IP_MULTICAST_IF, &request)
}
