// Package inet has what sockets of all internet protocols have: options, buffers,
// filters, addresses. Its tables name all options that a program can set and the kernel
// tells again; what programs never set is left as a new socket has it, and needs no
// privilege then.
//
// Sources: socket(7), ip(7), ipv6(7), tcp(7), udp(7), and the kernel's
// net/core/sock.c, net/ipv4/ip_sockglue.c and net/ipv6/ipv6_sockglue.c.
package inet
