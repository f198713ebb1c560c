// Package acceptqueue moves connections that a listener's program has not accepted yet: it
// takes them out of the accept queue on one host and puts them into that of a listener on
// another, from which the program's own accept(2) returns them, in order, with their data.
// What is moved is plain data (tcprepair.Socket). It knows nothing of processes and
// migrations.
//
//	  source                                  destination
//	Drain ─▶ []*tcprepair.Socket ───────────▶ Filler.Put, one after the other
//	  accept, Dump, Discard                     │
//	                                            │ in the peer's name, by a raw socket
//	                                            ▼
//	             ┌── lo, ingress: the Filler's program ◀── 1. acknowledgement
//	             │   "this ends a handshake of which
//	             │    such was the result"              ◀── 2. data, 3. FIN
//	             ▼
//	          listener ──▶ accept queue ──▶ accept(2)
//
// No socket option puts a connection into an accept queue. But the kernel lets a program
// of the administrator's answer SYNs (SYN cookies) and say of the acknowledgement that
// follows what was agreed on: then the kernel makes the connection. Here nobody has sent
// a SYN: the sequence numbers are those of our acknowledgement, the rest is told.
//
// From before Drain until after Put all packets of the connections, and those that begin
// new ones with the listeners, must be held back on both hosts (tcprepair/hold), but for
// those of tcprepair.Priority; what the hosts themselves send must be dropped. If it is not,
// peers see acknowledgements of what has been acknowledged before. They are not sent resets.
//
// # Listeners of MPTCP
//
// Programs in Go have them. The kernel does not make such connections for them, and they
// come into being by a helper: see putByHelper. A connection whose peer has agreed on
// several paths cannot be moved; Drain says so.
//
// # Groups of listeners
//
// Of several listeners with one port (SO_REUSEPORT) the one that is named gets the
// connection. The connection itself does not have that option then, as its original did:
// it matters to who makes another listener while it lives, and sets no SO_REUSEADDR.
//
// # What is carried over
//
// What package tcprepair carries over, but for the window that was last advertised (a new
// one is, as large as the listener's receive buffer gives) and timestamps of a microsecond's
// resolution (the clock goes on in milliseconds). Options are those of the listener, as they
// were.
//
// Connections whose handshake was not over are not in the queue: their peers begin again,
// but for those that take them for established, as their last acknowledgement was lost, the
// queue was full, or the listener waits for data (TCP_DEFER_ACCEPT). These are reset when
// they send something.
//
// Sources: net/core/filter.c (bpf_sk_assign_tcp_reqsk), net/ipv4/syncookies.c
// (cookie_v4_check, cookie_bpf_check), net/ipv6/syncookies.c, net/ipv4/inet_connection_sock.c
// (inet_csk_listen_stop) of Linux, include/uapi/linux/inet_diag.h, RFC 9293.
package acceptqueue
