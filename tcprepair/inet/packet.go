package inet

import (
	"slices"

	"golang.org/x/sys/unix"
)

// Packet is what packet sockets have (packet(7)), but for their groups and rings. Those of
// the levels of IP are not among them.
var Packet = newTable(slices.Concat(reuse, generic(internet), generic(datagram), []Kind{
	{unix.SOL_PACKET, unix.PACKET_AUXDATA, "PACKET_AUXDATA", 4, WhileSilent, Any},
	{unix.SOL_PACKET, unix.PACKET_ORIGDEV, "PACKET_ORIGDEV", 4, WhileSilent, Any},
	{unix.SOL_PACKET, unix.PACKET_VNET_HDR, "PACKET_VNET_HDR", 4, WhileSilent, Any},
	{unix.SOL_PACKET, unix.PACKET_VNET_HDR_SZ, "PACKET_VNET_HDR_SZ", 4, WhileSilent, Any}, // PACKET_VNET_HDR sets it, too
	{unix.SOL_PACKET, unix.PACKET_VERSION, "PACKET_VERSION", 4, WhileSilent, Any},
	{unix.SOL_PACKET, unix.PACKET_RESERVE, "PACKET_RESERVE", 4, WhileSilent, Any},
	{unix.SOL_PACKET, unix.PACKET_LOSS, "PACKET_LOSS", 4, WhileSilent, Any},
	{unix.SOL_PACKET, unix.PACKET_TIMESTAMP, "PACKET_TIMESTAMP", 4, WhileSilent, Any},
	{unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, "PACKET_IGNORE_OUTGOING", 4, WhileSilent, Any},
	{unix.SOL_PACKET, unix.PACKET_TX_HAS_OFF, "PACKET_TX_HAS_OFF", 4, WhileSilent, Any},
	{unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, "PACKET_QDISC_BYPASS", 4, WhileSilent, Any},
}, last)...)

// generic are those that are not of a protocol's (socket(7)).
func generic(kinds []Kind) []Kind {
	return slices.DeleteFunc(slices.Clone(kinds), func(k Kind) bool { return k.Level != unix.SOL_SOCKET })
}
