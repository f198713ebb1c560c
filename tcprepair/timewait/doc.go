// Package timewait lists connections that have ended and that the kernel remembers, so that they
// can be put where their address goes: what a peer sends again is acknowledged there, too, and not
// answered with a reset.
//
//	source                        destination, which has the address
//	Lister.List ──▶ TimeWait ────▶ Restorer.RestoreTimeWait (package tcprepair)
//
// No system call shows all of such a socket. A BPF iterator over the TCP sockets of a network
// namespace does (bpf_iter_tcp, net/ipv4/tcp_ipv4.c): its program copies struct
// tcp_timewait_sock, of which this package knows by the kernel's own description (BTF) where
// what lies. Nothing is changed by reading. A kernel that does not describe its types, or is older than
// Linux 5.9, has no Lister.
//
// A Lister may be used from any goroutine. It lists the network namespace of the calling thread.
package timewait
