package inet

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// ipv6UnicastIF is IPV6_UNICAST_IF (include/uapi/linux/in6.h).
const ipv6UnicastIF = 76

// Devices are those through which a socket sends, by their names: as it says itself
// (IP_UNICAST_IF, IPV6_UNICAST_IF), and to groups (IP_MULTICAST_IF, IPV6_MULTICAST_IF).
// Empty: any.
type Devices struct{ Any, Groups string }

// ReadDevices reads through which devices a socket sends. One that was named for groups by
// its number to a socket of IPv4 is not told (struct ip_mreqn without an address).
func ReadDevices(fd int, ipv6 bool) (d Devices, err error) {
	level, name := unix.SOL_IP, unix.IP_UNICAST_IF
	if ipv6 {
		level, name = unix.SOL_IPV6, ipv6UnicastIF
	}
	index, err := GetInt(fd, level, name)
	if err != nil {
		return d, fmt.Errorf("reading the device that it sends through: %w", err)
	}
	// In the order of the network, to be mistaken for an address (ip(7)).
	if d.Any, err = deviceName(swap(index)); err != nil {
		return d, err
	}
	if ipv6 {
		if index, err = GetInt(fd, unix.SOL_IPV6, unix.IPV6_MULTICAST_IF); err == nil {
			d.Groups, err = deviceName(index)
		}
	} else {
		var address []byte
		if address, err = Get(fd, unix.SOL_IP, unix.IP_MULTICAST_IF, 4); err == nil && len(address) == 4 {
			d.Groups, err = deviceWith(netip.AddrFrom4([4]byte(address)))
		}
	}
	if err != nil {
		return d, fmt.Errorf("reading the device for groups: %w", err)
	}
	return d, nil
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
		return "", fmt.Errorf("a socket that sends through device %d, which is gone, %w", index, ErrUnsupported)
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
	return "", fmt.Errorf("a socket that sends to groups from %v, an address which is gone, %w", a, ErrUnsupported)
}

// Set is the other half of ReadDevices.
func (d Devices) Set(fd int, ipv6 bool) error {
	if d.Any != "" {
		device, err := net.InterfaceByName(d.Any)
		if err != nil {
			return fmt.Errorf("sending through %s: %w", d.Any, err)
		}
		level, name := unix.SOL_IP, unix.IP_UNICAST_IF
		if ipv6 {
			level, name = unix.SOL_IPV6, ipv6UnicastIF
		}
		if err := SetInt(fd, level, name, swap(uint32(device.Index))); err != nil {
			return fmt.Errorf("sending through %s: %w", d.Any, err)
		}
	}
	if d.Groups == "" {
		return nil
	}
	device, err := net.InterfaceByName(d.Groups)
	switch {
	case err != nil:
	case ipv6:
		err = unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_MULTICAST_IF, device.Index)
	default:
		err = setGroupDevice(fd, device)
	}
	if err != nil {
		return fmt.Errorf("sending to groups through %s: %w", d.Groups, err)
	}
	return nil
}

// setGroupDevice names a device with its address, as that alone is told again.
func setGroupDevice(fd int, d *net.Interface) error {
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
