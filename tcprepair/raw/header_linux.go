package raw

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/tcprepair/inet"
)

// maxHeaders is more than a program can set: of IPv6 each header has up to 2 KiB (ip(7),
// ipv6(7)).
const maxHeaders = 1 << 11

// headers are options that are parts of packets, in the order of setting.
type headers struct {
	level int
	names []int
}

func headersOf(ipv6 bool) headers {
	if ipv6 {
		return headers{unix.SOL_IPV6, []int{unix.IPV6_HOPOPTS, unix.IPV6_RTHDRDSTOPTS, unix.IPV6_RTHDR, unix.IPV6_DSTOPTS}}
	}
	return headers{unix.SOL_IP, []int{unix.IP_OPTIONS}}
}

func (h headers) has(name int) bool { return slices.Contains(h.names, name) }

// readHeaders reads those that the program has set.
func readHeaders(fd int, ipv6 bool) (all []inet.Option, err error) {
	h := headersOf(ipv6)
	for _, name := range h.names {
		value, err := inet.Get(fd, h.level, name, maxHeaders)
		if err != nil {
			return nil, fmt.Errorf("reading header option %d: %w", name, err)
		}
		if len(value) > 0 {
			all = append(all, inet.Option{Level: h.level, Name: name, Value: value})
		}
	}
	return all, nil
}

func setHeaders(fd int, all []inet.Option) error {
	for _, o := range all {
		if err := inet.Set(fd, o.Level, o.Name, o.Value); err != nil {
			return fmt.Errorf("setting header option %d: %w", o.Name, err)
		}
	}
	return nil
}
