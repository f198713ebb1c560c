package inet

import (
	"slices"

	"golang.org/x/sys/unix"
)

// What x/sys/unix lacks, of include/uapi/linux/udp.h, in.h, in6.h and
// include/uapi/asm-generic/socket.h.
const (
	udpNoCheck6TX      = 101
	udpNoCheck6RX      = 102
	ipRecvErrRFC4884   = 26
	ipv6RecvErrRFC4884 = 31
	ipv6MulticastAll   = 29
	soRcvMark          = 75
	soRcvPriority      = 82
)

// reuse is SO_REUSEADDR where there is no repair mode.
var reuse = []Kind{{unix.SOL_SOCKET, unix.SO_REUSEADDR, "SO_REUSEADDR", 4, BeforeBind, Any}}

// datagram are the kinds that all internet sockets of datagrams have beside internet. Not
// among them: what names a device by a number, which is another one on another host
// (IP_UNICAST_IF, IPV6_MULTICAST_IF, ...).
var datagram = []Kind{
	{unix.SOL_SOCKET, unix.SO_BROADCAST, "SO_BROADCAST", 4, WhileSilent, Any},
	{unix.SOL_SOCKET, unix.SO_NO_CHECK, "SO_NO_CHECK", 4, WhileSilent, Any},
	{unix.SOL_SOCKET, unix.SO_TXTIME, "SO_TXTIME", 8, WhileSilent, Any},
	{unix.SOL_SOCKET, soRcvMark, "SO_RCVMARK", 4, WhileSilent, Any},
	{unix.SOL_SOCKET, soRcvPriority, "SO_RCVPRIORITY", 4, WhileSilent, Any},

	{unix.SOL_IP, unix.IP_MULTICAST_TTL, "IP_MULTICAST_TTL", 4, WhileSilent, Any},
	{unix.SOL_IP, unix.IP_MULTICAST_LOOP, "IP_MULTICAST_LOOP", 4, WhileSilent, Any},
	{unix.SOL_IP, unix.IP_MULTICAST_ALL, "IP_MULTICAST_ALL", 4, WhileSilent, Any},
	{unix.SOL_IP, unix.IP_RECVOPTS, "IP_RECVOPTS", 4, WhileSilent, Any},
	{unix.SOL_IP, unix.IP_RETOPTS, "IP_RETOPTS", 4, WhileSilent, Any},
	{unix.SOL_IP, unix.IP_RECVORIGDSTADDR, "IP_RECVORIGDSTADDR", 4, WhileSilent, Any},
	{unix.SOL_IP, unix.IP_RECVFRAGSIZE, "IP_RECVFRAGSIZE", 4, WhileSilent, Any},
	{unix.SOL_IP, unix.IP_CHECKSUM, "IP_CHECKSUM", 4, WhileSilent, Any},
	{unix.SOL_IP, unix.IP_PASSSEC, "IP_PASSSEC", 4, WhileSilent, Any},
	{unix.SOL_IP, ipRecvErrRFC4884, "IP_RECVERR_RFC4884", 4, WhileSilent, Any},

	{unix.SOL_IPV6, unix.IPV6_MULTICAST_HOPS, "IPV6_MULTICAST_HOPS", 4, WhileSilent, IPv6},
	{unix.SOL_IPV6, unix.IPV6_MULTICAST_LOOP, "IPV6_MULTICAST_LOOP", 4, WhileSilent, IPv6},
	{unix.SOL_IPV6, ipv6MulticastAll, "IPV6_MULTICAST_ALL", 4, WhileSilent, IPv6},
	{unix.SOL_IPV6, unix.IPV6_RECVHOPOPTS, "IPV6_RECVHOPOPTS", 4, WhileSilent, IPv6},
	{unix.SOL_IPV6, unix.IPV6_RECVDSTOPTS, "IPV6_RECVDSTOPTS", 4, WhileSilent, IPv6},
	{unix.SOL_IPV6, unix.IPV6_RECVRTHDR, "IPV6_RECVRTHDR", 4, WhileSilent, IPv6},
	{unix.SOL_IPV6, unix.IPV6_RECVORIGDSTADDR, "IPV6_RECVORIGDSTADDR", 4, WhileSilent, IPv6},
	{unix.SOL_IPV6, unix.IPV6_RECVFRAGSIZE, "IPV6_RECVFRAGSIZE", 4, WhileSilent, IPv6},
	{unix.SOL_IPV6, unix.IPV6_RECVPATHMTU, "IPV6_RECVPATHMTU", 4, WhileSilent, IPv6},
	{unix.SOL_IPV6, unix.IPV6_DONTFRAG, "IPV6_DONTFRAG", 4, WhileSilent, IPv6},
	{unix.SOL_IPV6, ipv6RecvErrRFC4884, "IPV6_RECVERR_RFC4884", 4, WhileSilent, IPv6},
}

// last are those that would spoil what comes before.
var last = []Kind{
	{unix.SOL_SOCKET, unix.SO_PEEK_OFF, "SO_PEEK_OFF", 4, AtLast, Any},
	{unix.SOL_SOCKET, unix.SO_LOCK_FILTER, "SO_LOCK_FILTER", 4, AtLast, Any},
}

// UDP is what its sockets have.
var UDP = newTable(slices.Concat(reuse, internet, datagram, []Kind{
	{unix.SOL_UDP, udpNoCheck6TX, "UDP_NO_CHECK6_TX", 4, WhileSilent, Any},
	{unix.SOL_UDP, udpNoCheck6RX, "UDP_NO_CHECK6_RX", 4, WhileSilent, Any},
	{unix.SOL_UDP, unix.UDP_SEGMENT, "UDP_SEGMENT", 4, WhileSilent, Any},
	{unix.SOL_UDP, unix.UDP_GRO, "UDP_GRO", 4, WhileSilent, Any},
	{unix.SOL_UDP, unix.UDP_CORK, "UDP_CORK", 4, AtLast, Any},
}, last)...)
