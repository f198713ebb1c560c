// Package address gives this host service addresses and takes them away, keeps
// the host silent about them, and tells the network when one has arrived. A
// service address is the local end of connections, and goes where they go.
//
//	Check ──▶ Put ──▶ Announce   the host answers for it, and the neighbours know
//	Silence ──▶ ... ──▶ Speak    while it is undecided which of two hosts has it,
//	                             neither answers who asks for it
//	Remove
//
// An address is put on as a host route (/32, /128) of the device whose network it
// is in, so that it neither is chosen as the source of other connections' packets
// nor takes a network's route along when it goes. Everything stands in the
// network namespace of the calling thread and outlives the process.
//
// Sources: RFC 826 and 5227 (ARP), RFC 4861 (neighbour discovery), nft(8).
package address
