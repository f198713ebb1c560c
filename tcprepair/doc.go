// Package tcprepair takes a TCP socket apart on one host and puts it together
// on another, so that its peer does not notice. It knows nothing of processes
// and migrations and is of use on its own.
//
// # A socket's way
//
//	  source                                   destination
//	Look                                         │
//	  │  what can be read while packets come     │
//	Dump ──▶ Socket ─────────────────────────▶ Restore
//	  │  repair mode, state and queues read      │  made, bound, connected and filled
//	  │                                          │  in repair mode: nothing is sent
//	  │                                        Arrive, if the address came only now
//	  ├─ Resume: as if nothing had been        Activate: what was not sent yet is
//	  └─ Discard: closed, the peer is not told
//
// From before Dump until Resume or Activate no packet of the connection may
// reach either host's network stack: a socket in repair mode still takes
// segments in (and what it takes in after it was read is lost), it still
// retransmits, and a host without the socket answers with a reset. Who keeps
// the packets back, and delivers them afterwards, is the caller.
//
// Connections that have ended, and that the kernel remembers for a minute (TIME-WAIT), are made by
// RestoreTimeWait; package timewait lists them.
//
// # What is carried over
//
// The state (tcp(7)), the sequence numbers and contents of both queues, windows
// and what was negotiated: maximum segment size, window scaling, selective
// acknowledgements, timestamps. A FIN that the peer has sent, and its
// acknowledgement of ours, are not something that the kernel lets be set: they
// are sent to the new socket once more, by a raw socket.
//
// What the kernel does not hand over starts anew: the congestion window, the
// estimate of the round-trip time, the scoreboard of selective
// acknowledgements, out-of-order segments (the peer sends them again), ECN.
//
// Sources: net/ipv4/tcp.c and tcp_output.c of Linux (TCP_REPAIR),
// include/uapi/linux/tcp.h, RFC 9293.
package tcprepair
