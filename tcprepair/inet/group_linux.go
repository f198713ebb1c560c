package inet

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// A Membership is a group that a socket listens to (IP_ADD_MEMBERSHIP), and of whom
// (RFC 3678).
type Membership struct {
	Group   netip.Addr
	Device  string
	Only    bool         // from Sources alone; otherwise from all but those
	Sources []netip.Addr `json:",omitzero"`
}

// Validate checks a Membership from elsewhere, of a socket of AF_INET6 or not.
func (m *Membership) Validate(ipv6 bool) error {
	if !m.Group.IsMulticast() || m.Group.Is6() && !ipv6 || len(m.Sources) > maxSources {
		return fmt.Errorf("the group %v with %d sources", m.Group, len(m.Sources))
	}
	for _, a := range m.Sources {
		if a.Is4() != m.Group.Is4() {
			return fmt.Errorf("the group %v with the source %v", m.Group, a)
		}
	}
	return nil
}

// A groupFilter is struct group_filter (include/uapi/linux/in.h): which group at which
// device, of whom.
type groupFilter struct {
	device  uint32
	group   netip.Addr
	only    bool
	sources []netip.Addr
}

const (
	storageBytes     = 128 // struct sockaddr_storage
	groupOffset      = 8
	modeOffset       = groupOffset + storageBytes
	sourcesOffset    = modeOffset + 8
	modeOnly         = 1 // MCAST_INCLUDE
	modeAllBut       = 0 // MCAST_EXCLUDE
	maxSources       = 1 << 10
	mcastJoinGroup   = 42
	mcastMSFilter    = 48
	groupRequestSize = groupOffset + storageBytes // struct group_req
)

func (g *groupFilter) level() int {
	if g.group.Is4() {
		return unix.SOL_IP
	}
	return unix.SOL_IPV6
}

func (g *groupFilter) encode(room int) []byte {
	b := make([]byte, sourcesOffset+max(room, len(g.sources))*storageBytes)
	binary.NativeEndian.PutUint32(b, g.device)
	putAddress(b[groupOffset:], g.group)
	mode := uint32(modeAllBut)
	if g.only {
		mode = modeOnly
	}
	binary.NativeEndian.PutUint32(b[modeOffset:], mode)
	binary.NativeEndian.PutUint32(b[modeOffset+4:], uint32(max(room, len(g.sources))))
	for i, a := range g.sources {
		putAddress(b[sourcesOffset+i*storageBytes:], a)
	}
	return b
}

// putAddress writes a struct sockaddr_in or sockaddr_in6.
func putAddress(b []byte, a netip.Addr) {
	if a.Is4() {
		binary.NativeEndian.PutUint16(b, unix.AF_INET)
		copy(b[4:], a.AsSlice())
		return
	}
	binary.NativeEndian.PutUint16(b, unix.AF_INET6)
	copy(b[8:], a.AsSlice())
}

// ReadMemberships finds out which of the groups that the host is in a socket has joined: the
// kernel does not list those of a socket, but tells of one that is asked for.
func ReadMemberships(fd int, ipv6 bool) ([]Membership, error) {
	candidates, err := hostGroups()
	if err != nil {
		return nil, fmt.Errorf("listing multicast groups: %w", err)
	}
	devices, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("listing network devices: %w", err)
	}
	numbers := make(map[string]int)
	for _, d := range devices {
		numbers[d.Name] = d.Index
	}
	var all []Membership
	for _, c := range candidates {
		if c.Group.Is6() && !ipv6 {
			continue
		}
		g := groupFilter{device: uint32(numbers[c.Device]), group: c.Group} // 0, if it is gone
		answer, err := Ask(fd, g.level(), mcastMSFilter, g.encode(maxSources))
		if errors.Is(err, unix.EADDRNOTAVAIL) || Unknown(err) || errors.Is(err, unix.ENODEV) {
			continue // it has not
		}
		if err != nil {
			return nil, fmt.Errorf("asking for the group %v at %s: %w", c.Group, c.Device, err)
		}
		m, err := decodeGroup(answer)
		if err != nil {
			return nil, err
		}
		m.Group, m.Device = c.Group, c.Device
		all = append(all, m)
	}
	slices.SortFunc(all, func(a, b Membership) int { return cmp.Or(a.Group.Compare(b.Group), cmp.Compare(a.Device, b.Device)) })
	return all, nil
}

func decodeGroup(b []byte) (m Membership, err error) {
	if len(b) < sourcesOffset {
		return m, fmt.Errorf("a group's filter of %d bytes", len(b))
	}
	m.Only = binary.NativeEndian.Uint32(b[modeOffset:]) == modeOnly
	n := int(binary.NativeEndian.Uint32(b[modeOffset+4:]))
	if n > maxSources || len(b) < sourcesOffset+n*storageBytes {
		return m, fmt.Errorf("a group with %d sources %w", n, ErrUnsupported)
	}
	for i := range n {
		a := ParseSockaddr(b[sourcesOffset+i*storageBytes:])
		if !a.Addr().IsValid() {
			return m, fmt.Errorf("source %d of a group is no address", i)
		}
		m.Sources = append(m.Sources, a.Addr())
	}
	return m, nil
}

// Join makes a socket a member.
func (m *Membership) Join(fd int) error {
	device, err := net.InterfaceByName(m.Device)
	if err != nil {
		return fmt.Errorf("joining %v at %s: %w", m.Group, m.Device, err)
	}
	g := groupFilter{device: uint32(device.Index), group: m.Group, only: m.Only, sources: m.Sources}
	if err := Set(fd, g.level(), mcastJoinGroup, g.encode(0)[:groupRequestSize]); err != nil {
		return fmt.Errorf("joining %v at %s: %w", m.Group, m.Device, err)
	}
	if !m.Only && len(m.Sources) == 0 {
		return nil
	}
	if err := Set(fd, g.level(), mcastMSFilter, g.encode(0)); err != nil {
		return fmt.Errorf("choosing the sources of %v: %w", m.Group, err)
	}
	return nil
}

// hostGroups are those that any socket or the kernel is in.
func hostGroups() ([]Membership, error) {
	four, err := os.ReadFile("/proc/thread-self/net/igmp")
	if err != nil {
		return nil, err
	}
	all := parseIGMP(four)
	six, err := os.ReadFile("/proc/thread-self/net/igmp6")
	if errors.Is(err, fs.ErrNotExist) { // no IPv6
		return all, nil
	}
	return append(all, parseIGMP6(six)...), err
}

// parseIGMP reads /proc/net/igmp: a line for each device, indented ones for its groups,
// in which the address is a number of this machine (net/ipv4/igmp.c).
func parseIGMP(content []byte) (all []Membership) {
	device := ""
	for lines := bufio.NewScanner(bytes.NewReader(content)); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 {
			continue
		}
		if !strings.HasPrefix(lines.Text(), "\t") {
			device = strings.TrimSuffix(fields[1], ":")
			continue
		}
		raw, err := hex.DecodeString(fields[0])
		if err != nil || len(raw) != 4 {
			continue
		}
		var a [4]byte
		binary.NativeEndian.PutUint32(a[:], binary.BigEndian.Uint32(raw))
		all = append(all, Membership{Group: netip.AddrFrom4(a), Device: device})
	}
	return all
}

// parseIGMP6 reads /proc/net/igmp6: a line for each group of each device (net/ipv6/mcast.c).
func parseIGMP6(content []byte) (all []Membership) {
	for lines := bufio.NewScanner(bytes.NewReader(content)); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 3 {
			continue
		}
		raw, err := hex.DecodeString(fields[2])
		if err != nil || len(raw) != 16 {
			continue
		}
		all = append(all, Membership{Group: netip.AddrFrom16([16]byte(raw)), Device: fields[1]})
	}
	return all
}
