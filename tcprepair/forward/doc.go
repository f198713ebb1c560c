// Package forward lets TCP connections live on another host than the one that has their
// local address, and keeps that address: the one, their home, passes the packets of just
// these connections on, and the other delivers them, as to guests. All else at the address
// goes on as before. Both hosts have to be on one link.
//
//	         home, has 10.77.0.1                    host of the guests
//	client ──▶ eth0 ──▶ ingress: fwd to 10.77.0.2 ──▶ eth0 ──▶ prerouting: mark
//	  ▲         (Set, Drop, Remove)                     (Admit, Dismiss)   │
//	  │                                                    ip rule: marked: lo
//	  │                                                                    ▼
//	  └──────────────── from 10.77.0.1, by way of no other host ◀──────  socket
//
// The home's own network stack sees nothing of the connections: packets are taken at the
// device where they come in, before a hold (package hold) would take them, and are sent
// to the neighbour as a router would do it, with a hop less to live. What a hold had taken
// before goes the same way (hold.Reinject). A guest can move on: then Set at home leads to
// its next host, and Set at the last one takes along what still comes there.
//
// A guest's socket needs IP_TRANSPARENT (ip(7)) all its life, or IPv4 finds no way for
// what it sends. Its packets have another sender's address: the network has to let them
// pass, and the guests' host must take packets of the client from the device by which they
// come (rp_filter). Both hosts look for IPv6 neighbours from the link-local address of the
// device: it must have one.
//
// # Order
//
// A move begins with holds at both hosts, of just the flows, at their devices and "lo". Then
//
//   - at the next host: Remove what it forwards itself, or packets come back to it; Admit,
//     unless it is the home; restore the socket, early if it is a guest, with IP_TRANSPARENT;
//   - hold.LetOut there, and Activate;
//   - at the last host: Dismiss; Set, with the hold's own device; hold.Reinject, which has
//     Set called at home, if that is a third host, and here with all devices;
//   - hold.Deliver at the next host. Then the holds can be closed.
//
// A last host that is not the home goes on forwarding for a while, as packets may still be
// on their way to it. When a guest's socket is no longer Alive, Drop at home comes first:
// until then IPv4 answers its peer with nothing, as nobody here has the address (IPv6 does
// with a reset), and after that the home answers as for any connection that it does not know.
//
// # What is not forwarded
//
// ICMP, so that the host of the guests must be as near to the clients as their home is:
// it does not hear of a path with a smaller MTU. Fragments of TCP segments. What is longer
// than the neighbour's device allows is lost. So a client on the home itself is out of reach:
// its segments are as long as the loopback device allows, and IPv4 takes no packets from its
// own address (accept_local). If both ends of such a connection become guests of one host,
// they do reach each other.
//
// # State
//
// There is none but the kernel's: tables of the firewall, an ip rule and a route. They
// outlive the process, not the boot, and List and Guests tell what is there. When a device
// ends, such as a hold's, its chain goes, too, or is of no effect until the next Set, as the
// kernel has it. Functions work in the network namespace of the calling
// thread; there one process at a time may change what has the same name, and admit and
// dismiss guests. The callers need CAP_NET_ADMIN.
//
// Sources: nft(8) ("netdev" family, fwd; meta mark; type route), ip-rule(8),
// Documentation/networking/tproxy.rst, sock_diag(7), include/uapi/linux/netfilter/.
package forward
