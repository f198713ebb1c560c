package inet

import (
	"slices"

	"golang.org/x/sys/unix"
)

// What x/sys/unix lacks, of include/uapi/linux/in.h and icmpv6.h.
const (
	ipNodefrag = 22
	solICMPv6  = 58
)

// Raw is what raw sockets and those of ping have (raw(7), icmp(7)). Those of one protocol
// alone are not told by others.
var Raw = newTable(slices.Concat(reuse, internet, datagram, []Kind{
	{unix.SOL_IP, unix.IP_HDRINCL, "IP_HDRINCL", 4, WhileSilent, Any},
	{unix.SOL_IP, ipNodefrag, "IP_NODEFRAG", 4, WhileSilent, Any},
	{unix.SOL_RAW, unix.ICMP_FILTER, "ICMP_FILTER", 4, WhileSilent, Any},
	{unix.SOL_IPV6, unix.IPV6_HDRINCL, "IPV6_HDRINCL", 4, WhileSilent, IPv6},
	{solICMPv6, unix.ICMPV6_FILTER, "ICMPV6_FILTER", 32, WhileSilent, IPv6},
	// At the level of IPv6 those of ICMPv6 must not have it (do_rawv6_setsockopt,
	// net/ipv6/raw.c).
	{unix.SOL_RAW, unix.IPV6_CHECKSUM, "IPV6_CHECKSUM", 4, WhileSilent, IPv6},
}, last)...)
