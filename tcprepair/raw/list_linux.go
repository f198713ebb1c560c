package raw

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

// A Listed is a raw socket, or one of ping, as the kernel lists it.
type Listed struct {
	Inode         uint64
	Ping          bool
	Number        uint16 // its protocol, or the identifier of ping
	Local, Remote netip.Addr
	Connected     bool
}

// List lists those of the network namespace of the caller's thread. It has what a socket
// itself does not tell: that it is connected, if no port was named (inet_getname,
// net/ipv4/af_inet.c).
func List() ([]Listed, error) {
	var all []Listed
	for _, name := range []string{"raw", "icmp", "raw6", "icmp6"} {
		content, err := os.ReadFile("/proc/thread-self/net/" + name)
		if errors.Is(err, fs.ErrNotExist) { // no IPv6
			continue
		}
		if err != nil {
			return nil, err
		}
		some, err := parseList(string(content))
		if err != nil {
			return nil, fmt.Errorf("/proc/net/%s: %w", name, err)
		}
		for i := range some {
			some[i].Ping = strings.HasPrefix(name, "icmp")
		}
		all = append(all, some...)
	}
	return all, nil
}

// tcpEstablished is the state of a connected one (include/net/tcp_states.h).
const tcpEstablished = "01"

// parseList reads lines like
//
//	193: 0100007F:0001 0100007F:0000 01 00000000:00000000 00:00000000 00000000     0        0 9407700 2 ...
//
// below a head (raw_sock_seq_show, net/ipv4/raw.c; __ip6_dgram_sock_seq_show,
// net/ipv6/datagram.c).
func parseList(content string) (all []Listed, err error) {
	const fields, local, remote, state, inode = 10, 1, 2, 3, 9
	_, content, _ = strings.Cut(content, "\n")
	for line := range strings.Lines(content) {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		if len(words) < fields {
			return nil, fmt.Errorf("line %q", line)
		}
		l := Listed{Connected: words[state] == tcpEstablished}
		if l.Local, l.Number, err = parseAddress(words[local]); err != nil {
			return nil, fmt.Errorf("line %q: %w", line, err)
		}
		if l.Remote, _, err = parseAddress(words[remote]); err != nil {
			return nil, fmt.Errorf("line %q: %w", line, err)
		}
		if l.Inode, err = strconv.ParseUint(words[inode], 10, 64); err != nil {
			return nil, fmt.Errorf("line %q: %w", line, err)
		}
		all = append(all, l)
	}
	return all, nil
}

// parseAddress reads one of IPv4 or IPv6, words of this machine, with a number behind it.
func parseAddress(text string) (netip.Addr, uint16, error) {
	digits, behind, _ := strings.Cut(text, ":")
	raw, err := hex.DecodeString(digits)
	number, also := strconv.ParseUint(behind, 16, 16)
	if err != nil || also != nil || len(raw) != 4 && len(raw) != 16 {
		return netip.Addr{}, 0, fmt.Errorf("address %q", text)
	}
	for i := 0; i < len(raw); i += 4 {
		binary.NativeEndian.PutUint32(raw[i:], binary.BigEndian.Uint32(raw[i:]))
	}
	a, _ := netip.AddrFromSlice(raw)
	return a, uint16(number), nil
}
