// Package hold keeps the packets of some connections, or all TCP and UDP packets to some
// addresses, back while nobody is there to take them, and delivers them afterwards, in
// order.
//
// A packet that comes in for one of them is neither delivered nor lost: a
// firewall rule at the device's ingress sends it into a pair of virtual devices
// and drops it there and then. The rules look flows up in sets, which are empty at
// first: to fill one is to begin (BeginHandshakes, Begin). The far end of the pair lies in a network
// namespace that nothing else lives in, where it is captured. What the host
// itself would send for one of the connections is dropped, but not its datagrams: nobody
// answers those that are held.
//
//	           device            rule                        pair, captured
//	peer ──────▶ eth0 ──▶ ingress: dup to pgh0, drop ──▶ pgh0 ═══ pgh1 ──▶ Hold
//	                                                                        │
//	           socket ◀── local delivery, by a raw socket ◀───── Deliver ◀──┤
//	another host that has the address by now ◀────────────────── Forward ◀──┘
//
// Packets are kept as they are on the wire: the kernel tells with each (PACKET_VNET_HDR)
// whether a network card was to put its checksum in, and whether it is several datagrams.
// Those are sent apart. TCP segments that were put together are sent so if they can be.
// Fragments are sent on as they came. A datagram that is too long for its way to another
// host is not sent.
//
// The rule outlives this process: should it die, packets are dropped from then
// on, which TCP recovers from, and nobody is answered with a reset. Remove takes
// away what a process that died has left.
//
// Sources: Documentation/networking/filter.rst, nft(8) ("netdev" family, dup),
// packet(7), raw(7), udp(7), include/linux/virtio_net.h.
package hold
