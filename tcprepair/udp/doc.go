// Package udp takes a UDP socket apart and puts it together on another host: addresses,
// options, groups that it is in, and the datagrams that have come and were not read yet.
//
//	Look ──▶ Dump ──▶ Socket ═══ any way ═══▶ Restore ──▶ Deliver
//
// Dump takes nothing away: the socket goes on as if it had not been read. Datagrams that
// come meanwhile must be held (package hold), or are read twice or not at all. What the
// kernel does not hand over: errors that were not told yet (ICMP), and of each datagram
// when and through which device it came.
//
// Sources: udp(7), ip(7), ipv6(7), RFC 768, RFC 3678, and the kernel's net/ipv4/udp.c.
package udp
