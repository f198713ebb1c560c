package inet

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// An Option is one socket option as getsockopt(2) has told it.
type Option struct {
	_           struct{} `cbor:",toarray"` // there are many
	Level, Name int
	Value       []byte
}

// A Phase is a time at which options are set.
type Phase uint8

// Options are set at three times.
const (
	BeforeBind  Phase = iota // what decides about addresses
	WhileSilent              // before anything can be sent
	AtLast                   // what acts at once, or what an earlier step would undo
)

// A Kind is an option that a program can set and that the kernel tells as it is to be set.
type Kind struct {
	Level, Name int
	Label       string
	Bytes       int // of its value; 0: any number, a string
	Phase       Phase
	Only        Family
}

// A Family is which sockets have an option.
type Family uint8

// Sockets of AF_INET6 that talk IPv4 have what those of AF_INET have.
const (
	Any Family = iota
	IPv6
)

func (k *Kind) applies(ipv6 bool) bool { return k.Only == Any || ipv6 }

// A Table is what sockets of a protocol have. It does not change.
type Table struct {
	kinds  []Kind
	byName map[[2]int]*Kind
}

// newTable makes one, in the order of setting.
func newTable(kinds ...Kind) *Table {
	t := &Table{kinds: kinds, byName: make(map[[2]int]*Kind)}
	for i := range kinds {
		t.byName[[2]int{kinds[i].Level, kinds[i].Name}] = &kinds[i]
	}
	return t
}

// Kind is one of them, or nil.
func (t *Table) Kind(level, name int) *Kind { return t.byName[[2]int{level, name}] }

// Validate checks an option from elsewhere.
func (t *Table) Validate(o *Option) error {
	k := t.Kind(o.Level, o.Name)
	switch {
	case k == nil:
		return fmt.Errorf("option %d of level %d", o.Name, o.Level)
	case k.Bytes != 0 && len(o.Value) != k.Bytes, len(o.Value) > 128:
		return fmt.Errorf("%s of %d bytes", k.Label, len(o.Value))
	}
	return nil
}

// Of are those options that are set at one time.
func (t *Table) Of(all []Option, p Phase) []Option {
	var some []Option
	for i := range all {
		if t.Kind(all[i].Level, all[i].Name).Phase == p {
			some = append(some, all[i])
		}
	}
	return some
}

// ipv6FlowinfoSend is what x/sys/unix lacks of include/uapi/linux/in6.h.
const ipv6FlowinfoSend = 33

// internet are the kinds that sockets of all internet protocols have, in the order of
// setting. Not among them: what only tells (SO_TYPE, ...), what acts once (SO_ERROR), and
// the sizes of the buffers (Buffers).
var internet = []Kind{
	{unix.SOL_SOCKET, unix.SO_REUSEPORT, "SO_REUSEPORT", 4, BeforeBind, Any},
	{unix.SOL_SOCKET, unix.SO_BINDTODEVICE, "SO_BINDTODEVICE", 0, BeforeBind, Any},
	{unix.SOL_SOCKET, unix.SO_MARK, "SO_MARK", 4, BeforeBind, Any},
	{unix.SOL_IP, unix.IP_FREEBIND, "IP_FREEBIND", 4, BeforeBind, Any},
	{unix.SOL_IP, unix.IP_TRANSPARENT, "IP_TRANSPARENT", 4, BeforeBind, Any},
	{unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, "IP_BIND_ADDRESS_NO_PORT", 4, BeforeBind, Any},
	{unix.SOL_IP, unix.IP_LOCAL_PORT_RANGE, "IP_LOCAL_PORT_RANGE", 4, BeforeBind, Any},
	{unix.SOL_IPV6, unix.IPV6_V6ONLY, "IPV6_V6ONLY", 4, BeforeBind, IPv6},

	{unix.SOL_SOCKET, unix.SO_RCVLOWAT, "SO_RCVLOWAT", 4, WhileSilent, Any},
	{unix.SOL_SOCKET, unix.SO_RCVTIMEO_NEW, "SO_RCVTIMEO", 16, WhileSilent, Any},
	{unix.SOL_SOCKET, unix.SO_SNDTIMEO_NEW, "SO_SNDTIMEO", 16, WhileSilent, Any},
	{unix.SOL_SOCKET, unix.SO_OOBINLINE, "SO_OOBINLINE", 4, WhileSilent, Any},
	{unix.SOL_SOCKET, unix.SO_DONTROUTE, "SO_DONTROUTE", 4, WhileSilent, Any},
	{unix.SOL_SOCKET, unix.SO_LINGER, "SO_LINGER", 8, WhileSilent, Any},
	{unix.SOL_SOCKET, unix.SO_TIMESTAMP, "SO_TIMESTAMP_OLD", 4, WhileSilent, Any},
	{unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, "SO_TIMESTAMPNS_OLD", 4, WhileSilent, Any},
	{unix.SOL_SOCKET, unix.SO_TIMESTAMPING, "SO_TIMESTAMPING", 4, WhileSilent, Any},
	{unix.SOL_SOCKET, unix.SO_TIMESTAMP_NEW, "SO_TIMESTAMP", 4, WhileSilent, Any},
	{unix.SOL_SOCKET, unix.SO_TIMESTAMPNS_NEW, "SO_TIMESTAMPNS", 4, WhileSilent, Any},
	{unix.SOL_SOCKET, unix.SO_RXQ_OVFL, "SO_RXQ_OVFL", 4, WhileSilent, Any},
	{unix.SOL_SOCKET, unix.SO_SELECT_ERR_QUEUE, "SO_SELECT_ERR_QUEUE", 4, WhileSilent, Any},
	{unix.SOL_SOCKET, unix.SO_BUSY_POLL, "SO_BUSY_POLL", 4, WhileSilent, Any},
	{unix.SOL_SOCKET, unix.SO_PREFER_BUSY_POLL, "SO_PREFER_BUSY_POLL", 4, WhileSilent, Any},
	{unix.SOL_SOCKET, unix.SO_MAX_PACING_RATE, "SO_MAX_PACING_RATE", 8, WhileSilent, Any},
	{unix.SOL_SOCKET, unix.SO_ZEROCOPY, "SO_ZEROCOPY", 4, WhileSilent, Any},
	{unix.SOL_SOCKET, unix.SO_RESERVE_MEM, "SO_RESERVE_MEM", 4, WhileSilent, Any},

	{unix.SOL_IP, unix.IP_TOS, "IP_TOS", 4, WhileSilent, Any},
	{unix.SOL_IP, unix.IP_TTL, "IP_TTL", 4, WhileSilent, Any},
	{unix.SOL_IP, unix.IP_MINTTL, "IP_MINTTL", 4, WhileSilent, Any},
	{unix.SOL_IP, unix.IP_MTU_DISCOVER, "IP_MTU_DISCOVER", 4, WhileSilent, Any},
	{unix.SOL_IP, unix.IP_RECVERR, "IP_RECVERR", 4, WhileSilent, Any},
	{unix.SOL_IP, unix.IP_RECVTOS, "IP_RECVTOS", 4, WhileSilent, Any},
	{unix.SOL_IP, unix.IP_RECVTTL, "IP_RECVTTL", 4, WhileSilent, Any},
	{unix.SOL_IP, unix.IP_PKTINFO, "IP_PKTINFO", 4, WhileSilent, Any},

	{unix.SOL_IPV6, unix.IPV6_TCLASS, "IPV6_TCLASS", 4, WhileSilent, IPv6},
	{unix.SOL_IPV6, unix.IPV6_UNICAST_HOPS, "IPV6_UNICAST_HOPS", 4, WhileSilent, IPv6},
	{unix.SOL_IPV6, unix.IPV6_MINHOPCOUNT, "IPV6_MINHOPCOUNT", 4, WhileSilent, IPv6},
	{unix.SOL_IPV6, unix.IPV6_MTU_DISCOVER, "IPV6_MTU_DISCOVER", 4, WhileSilent, IPv6},
	{unix.SOL_IPV6, unix.IPV6_RECVERR, "IPV6_RECVERR", 4, WhileSilent, IPv6},
	{unix.SOL_IPV6, unix.IPV6_AUTOFLOWLABEL, "IPV6_AUTOFLOWLABEL", 4, WhileSilent, IPv6},
	{unix.SOL_IPV6, ipv6FlowinfoSend, "IPV6_FLOWINFO_SEND", 4, WhileSilent, IPv6},
	{unix.SOL_IPV6, unix.IPV6_RECVTCLASS, "IPV6_RECVTCLASS", 4, WhileSilent, IPv6},
	{unix.SOL_IPV6, unix.IPV6_RECVHOPLIMIT, "IPV6_RECVHOPLIMIT", 4, WhileSilent, IPv6},
	{unix.SOL_IPV6, unix.IPV6_RECVPKTINFO, "IPV6_RECVPKTINFO", 4, WhileSilent, IPv6},
	{unix.SOL_IPV6, unix.IPV6_ADDR_PREFERENCES, "IPV6_ADDR_PREFERENCES", 4, WhileSilent, IPv6},

	// IP_TOS sets it, too.
	{unix.SOL_SOCKET, unix.SO_PRIORITY, "SO_PRIORITY", 4, AtLast, Any},
	// Its timer starts when it is set, if there is a connection.
	{unix.SOL_SOCKET, unix.SO_KEEPALIVE, "SO_KEEPALIVE", 4, AtLast, Any},
	{unix.SOL_SOCKET, unix.SO_INCOMING_CPU, "SO_INCOMING_CPU", 4, AtLast, Any},
}

// OnlyIPv6 reports options of a socket that takes no IPv4 (IPV6_V6ONLY).
func OnlyIPv6(all []Option) bool {
	return slices.ContainsFunc(all, func(o Option) bool {
		return o.Level == unix.SOL_IPV6 && o.Name == unix.IPV6_V6ONLY && slices.ContainsFunc(o.Value, func(b byte) bool { return b != 0 })
	})
}
