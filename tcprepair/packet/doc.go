// Package packet takes a packet socket apart and puts it together on another host: protocol,
// the device that it is bound to, options, filter and memberships. Devices are named, as they
// have other numbers elsewhere.
//
//	Look ──▶ Socket ═══ any way ═══▶ Restore
//
// Look disturbs nothing: the socket goes on as if it had not been read. What cannot be
// handed over:
//   - what has come and was not read (inet.Unread tells of it): it could be read with
//     MSG_PEEK, and there is no way to put a packet into one socket's queue that others do
//     not see;
//   - what PACKET_STATISTICS has counted, which begins anew: to read it is to clear it.
//
// Sockets with rings in memory (PACKET_RX_RING, PACKET_TX_RING), of a group that shares
// packets (PACKET_FANOUT), with a filter of eBPF, of the type SOCK_PACKET, and those whose
// device is gone are refused. It takes a kernel that lists packet sockets
// (CONFIG_PACKET_DIAG).
//
// Sources: packet(7), and the kernel's net/packet/af_packet.c, net/packet/diag.c.
package packet
