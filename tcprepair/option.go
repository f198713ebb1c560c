package tcprepair

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// An Option is one socket option as getsockopt(2) has told it.
type Option struct {
	_           struct{} `cbor:",toarray"` // there are many
	Level, Name int
	Value       []byte
}

// Options are set at three times.
type phase uint8

const (
	beforeBind  phase = iota // what decides about addresses
	whileSilent              // in repair mode, before anything can be sent
	atLast                   // what leaving repair mode would undo, or what acts at once
)

// An optionKind is an option that a program can set and that the kernel tells
// as it is to be set.
type optionKind struct {
	level, name int
	label       string
	bytes       int // of its value; 0: any number, a string
	phase       phase
	only        family
}

type family uint8

const (
	any46 family = iota
	only4        // sockets of AF_INET, and those of AF_INET6 that talk IPv4
	only6        // sockets of AF_INET6
)

// What x/sys/unix lacks, of include/uapi/linux/in6.h and include/uapi/linux/tcp.h.
const (
	ipv6FlowinfoSend = 33
	tcpRTOMaxMS      = 44 // Linux 6.15
	tcpRTOMinUS      = 45
	tcpDelACKMaxUS   = 46
)

// kinds are all of them, in the order of setting. Not among them: what only
// tells (SO_TYPE, TCP_INFO, ...), what acts once (TCP_QUICKACK, SO_ERROR), and
// the sizes of the buffers (buffers.go).
var kinds = []optionKind{
	{unix.SOL_SOCKET, unix.SO_REUSEPORT, "SO_REUSEPORT", 4, beforeBind, any46},
	{unix.SOL_SOCKET, unix.SO_BINDTODEVICE, "SO_BINDTODEVICE", 0, beforeBind, any46},
	{unix.SOL_SOCKET, unix.SO_MARK, "SO_MARK", 4, beforeBind, any46},
	{unix.SOL_IP, unix.IP_FREEBIND, "IP_FREEBIND", 4, beforeBind, any46},
	{unix.SOL_IP, unix.IP_TRANSPARENT, "IP_TRANSPARENT", 4, beforeBind, any46},
	{unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, "IP_BIND_ADDRESS_NO_PORT", 4, beforeBind, any46},
	{unix.SOL_IP, unix.IP_LOCAL_PORT_RANGE, "IP_LOCAL_PORT_RANGE", 4, beforeBind, any46},
	{unix.SOL_IPV6, unix.IPV6_V6ONLY, "IPV6_V6ONLY", 4, beforeBind, only6},

	{unix.SOL_SOCKET, unix.SO_RCVLOWAT, "SO_RCVLOWAT", 4, whileSilent, any46},
	{unix.SOL_SOCKET, unix.SO_RCVTIMEO_NEW, "SO_RCVTIMEO", 16, whileSilent, any46},
	{unix.SOL_SOCKET, unix.SO_SNDTIMEO_NEW, "SO_SNDTIMEO", 16, whileSilent, any46},
	{unix.SOL_SOCKET, unix.SO_OOBINLINE, "SO_OOBINLINE", 4, whileSilent, any46},
	{unix.SOL_SOCKET, unix.SO_DONTROUTE, "SO_DONTROUTE", 4, whileSilent, any46},
	{unix.SOL_SOCKET, unix.SO_LINGER, "SO_LINGER", 8, whileSilent, any46},
	{unix.SOL_SOCKET, unix.SO_TIMESTAMP, "SO_TIMESTAMP_OLD", 4, whileSilent, any46},
	{unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, "SO_TIMESTAMPNS_OLD", 4, whileSilent, any46},
	{unix.SOL_SOCKET, unix.SO_TIMESTAMPING, "SO_TIMESTAMPING", 4, whileSilent, any46},
	{unix.SOL_SOCKET, unix.SO_TIMESTAMP_NEW, "SO_TIMESTAMP", 4, whileSilent, any46},
	{unix.SOL_SOCKET, unix.SO_TIMESTAMPNS_NEW, "SO_TIMESTAMPNS", 4, whileSilent, any46},
	{unix.SOL_SOCKET, unix.SO_RXQ_OVFL, "SO_RXQ_OVFL", 4, whileSilent, any46},
	{unix.SOL_SOCKET, unix.SO_SELECT_ERR_QUEUE, "SO_SELECT_ERR_QUEUE", 4, whileSilent, any46},
	{unix.SOL_SOCKET, unix.SO_BUSY_POLL, "SO_BUSY_POLL", 4, whileSilent, any46},
	{unix.SOL_SOCKET, unix.SO_PREFER_BUSY_POLL, "SO_PREFER_BUSY_POLL", 4, whileSilent, any46},
	{unix.SOL_SOCKET, unix.SO_MAX_PACING_RATE, "SO_MAX_PACING_RATE", 8, whileSilent, any46},
	{unix.SOL_SOCKET, unix.SO_ZEROCOPY, "SO_ZEROCOPY", 4, whileSilent, any46},
	{unix.SOL_SOCKET, unix.SO_RESERVE_MEM, "SO_RESERVE_MEM", 4, whileSilent, any46},

	{unix.SOL_IP, unix.IP_TOS, "IP_TOS", 4, whileSilent, any46},
	{unix.SOL_IP, unix.IP_TTL, "IP_TTL", 4, whileSilent, any46},
	{unix.SOL_IP, unix.IP_MINTTL, "IP_MINTTL", 4, whileSilent, any46},
	{unix.SOL_IP, unix.IP_MTU_DISCOVER, "IP_MTU_DISCOVER", 4, whileSilent, any46},
	{unix.SOL_IP, unix.IP_RECVERR, "IP_RECVERR", 4, whileSilent, any46},
	{unix.SOL_IP, unix.IP_RECVTOS, "IP_RECVTOS", 4, whileSilent, any46},
	{unix.SOL_IP, unix.IP_RECVTTL, "IP_RECVTTL", 4, whileSilent, any46},
	{unix.SOL_IP, unix.IP_PKTINFO, "IP_PKTINFO", 4, whileSilent, any46},

	{unix.SOL_IPV6, unix.IPV6_TCLASS, "IPV6_TCLASS", 4, whileSilent, only6},
	{unix.SOL_IPV6, unix.IPV6_UNICAST_HOPS, "IPV6_UNICAST_HOPS", 4, whileSilent, only6},
	{unix.SOL_IPV6, unix.IPV6_MINHOPCOUNT, "IPV6_MINHOPCOUNT", 4, whileSilent, only6},
	{unix.SOL_IPV6, unix.IPV6_MTU_DISCOVER, "IPV6_MTU_DISCOVER", 4, whileSilent, only6},
	{unix.SOL_IPV6, unix.IPV6_RECVERR, "IPV6_RECVERR", 4, whileSilent, only6},
	{unix.SOL_IPV6, unix.IPV6_AUTOFLOWLABEL, "IPV6_AUTOFLOWLABEL", 4, whileSilent, only6},
	{unix.SOL_IPV6, ipv6FlowinfoSend, "IPV6_FLOWINFO_SEND", 4, whileSilent, only6},
	{unix.SOL_IPV6, unix.IPV6_RECVTCLASS, "IPV6_RECVTCLASS", 4, whileSilent, only6},
	{unix.SOL_IPV6, unix.IPV6_RECVHOPLIMIT, "IPV6_RECVHOPLIMIT", 4, whileSilent, only6},
	{unix.SOL_IPV6, unix.IPV6_RECVPKTINFO, "IPV6_RECVPKTINFO", 4, whileSilent, only6},
	{unix.SOL_IPV6, unix.IPV6_ADDR_PREFERENCES, "IPV6_ADDR_PREFERENCES", 4, whileSilent, only6},

	{unix.SOL_TCP, unix.TCP_CONGESTION, "TCP_CONGESTION", 0, whileSilent, any46},
	{unix.SOL_TCP, unix.TCP_KEEPIDLE, "TCP_KEEPIDLE", 4, whileSilent, any46},
	{unix.SOL_TCP, unix.TCP_KEEPINTVL, "TCP_KEEPINTVL", 4, whileSilent, any46},
	{unix.SOL_TCP, unix.TCP_KEEPCNT, "TCP_KEEPCNT", 4, whileSilent, any46},
	{unix.SOL_TCP, unix.TCP_SYNCNT, "TCP_SYNCNT", 4, whileSilent, any46},
	{unix.SOL_TCP, unix.TCP_LINGER2, "TCP_LINGER2", 4, whileSilent, any46},
	{unix.SOL_TCP, unix.TCP_DEFER_ACCEPT, "TCP_DEFER_ACCEPT", 4, whileSilent, any46},
	{unix.SOL_TCP, unix.TCP_WINDOW_CLAMP, "TCP_WINDOW_CLAMP", 4, atLast, any46},
	{unix.SOL_TCP, unix.TCP_USER_TIMEOUT, "TCP_USER_TIMEOUT", 4, whileSilent, any46},
	{unix.SOL_TCP, unix.TCP_FASTOPEN, "TCP_FASTOPEN", 4, atLast, any46},
	{unix.SOL_TCP, unix.TCP_FASTOPEN_CONNECT, "TCP_FASTOPEN_CONNECT", 4, whileSilent, any46},
	{unix.SOL_TCP, unix.TCP_FASTOPEN_NO_COOKIE, "TCP_FASTOPEN_NO_COOKIE", 4, whileSilent, any46},
	{unix.SOL_TCP, unix.TCP_SAVE_SYN, "TCP_SAVE_SYN", 4, whileSilent, any46},
	{unix.SOL_TCP, unix.TCP_NOTSENT_LOWAT, "TCP_NOTSENT_LOWAT", 4, whileSilent, any46},
	{unix.SOL_TCP, unix.TCP_THIN_LINEAR_TIMEOUTS, "TCP_THIN_LINEAR_TIMEOUTS", 4, whileSilent, any46},
	{unix.SOL_TCP, unix.TCP_INQ, "TCP_INQ", 4, whileSilent, any46},
	{unix.SOL_TCP, unix.TCP_TX_DELAY, "TCP_TX_DELAY", 4, whileSilent, any46},
	{unix.SOL_TCP, tcpRTOMaxMS, "TCP_RTO_MAX_MS", 4, whileSilent, any46},
	{unix.SOL_TCP, tcpRTOMinUS, "TCP_RTO_MIN_US", 4, whileSilent, any46},
	{unix.SOL_TCP, tcpDelACKMaxUS, "TCP_DELACK_MAX_US", 4, whileSilent, any46},
	{unix.SOL_TCP, unix.TCP_CORK, "TCP_CORK", 4, whileSilent, any46},
	{unix.SOL_TCP, unix.TCP_NODELAY, "TCP_NODELAY", 4, whileSilent, any46},

	// IP_TOS sets it, too.
	{unix.SOL_SOCKET, unix.SO_PRIORITY, "SO_PRIORITY", 4, atLast, any46},
	// Repair mode has a value of its own.
	{unix.SOL_SOCKET, unix.SO_REUSEADDR, "SO_REUSEADDR", 4, atLast, any46},
	// Its timer starts when it is set, if there is a connection.
	{unix.SOL_SOCKET, unix.SO_KEEPALIVE, "SO_KEEPALIVE", 4, atLast, any46},
	{unix.SOL_SOCKET, unix.SO_INCOMING_CPU, "SO_INCOMING_CPU", 4, atLast, any46},
}

func (k *optionKind) applies(ipv6 bool) bool { return k.only == any46 || ipv6 }

// byName are the kinds by level and name.
var byName = func() map[[2]int]*optionKind {
	all := make(map[[2]int]*optionKind)
	for i := range kinds {
		all[[2]int{kinds[i].level, kinds[i].name}] = &kinds[i]
	}
	return all
}()

func kindOf(level, name int) *optionKind { return byName[[2]int{level, name}] }

func (o *Option) validate() error {
	k := kindOf(o.Level, o.Name)
	switch {
	case k == nil:
		return fmt.Errorf("%w: option %d of level %d", ErrInvalid, o.Name, o.Level)
	case k.bytes != 0 && len(o.Value) != k.bytes, len(o.Value) > 128:
		return fmt.Errorf("%w: %s of %d bytes", ErrInvalid, k.label, len(o.Value))
	}
	return nil
}
