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
// Linux 5.9, has no Lister: there, as nobody knows of them, a move leaves such connections behind.
//
// What begins anew at the destination is the time that is left of a minute, after the peer's FIN; in
// FIN-WAIT-2 it is kept, by the second. Left behind is what is bound to a device, or signed (RFC 2385,
// RFC 5925), and FIN-WAIT-2 where tcp_fin_timeout is more than a minute (no time-wait socket then).
//
// A Lister may be used from any goroutine. It lists the network namespace of the calling thread.
package timewait
