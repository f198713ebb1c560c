// Package raw takes a raw socket or one of ping apart and puts it together on another host:
// addresses, protocol or identifier, options, filter, and groups that it is in.
//
//	Look ──▶ Socket ═══ any way ═══▶ Restore
//
// Look disturbs nothing: the socket goes on as if it had not been read. What cannot be
// handed over:
//   - what has come and was not read (Unread tells of it): it could be read with MSG_PEEK,
//     and there is no way to put a packet into one socket's queue that others do not see;
//   - errors that were not told yet (ICMP);
//   - IP_ROUTER_ALERT and IPV6_ROUTER_ALERT, IP_MULTICAST_IF of a device without its
//     address, flow labels (IPV6_FLOWLABEL_MGR) and IPV6_PKTINFO as a default, which no
//     kernel tells again. With them, a socket arrives without them.
//
// A socket that routes multicast (MRT_INIT) is refused, as is a filter of eBPF.
//
// Sources: raw(7), icmp(7), ip(7), ipv6(7), RFC 3542, and the kernel's net/ipv4/raw.c,
// net/ipv6/raw.c, net/ipv4/ping.c and net/ipv6/ping.c.
package raw
