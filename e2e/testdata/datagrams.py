"""Has UDP sockets of all kinds and reads them when it is told to.

Usage: datagrams.py ADDRESS PORT GROUP

At PORT of ADDRESS it keeps what comes until a datagram "read" comes at PORT+1 of all
addresses: then it answers that with all that it has read, a line for each datagram: its
sender's port, how many bytes, and the sum of them. At PORT+2 it listens to GROUP, and at
PORT+3 of ADDRESS it is connected to port 7000 of 10.77.0.250, to which it sends what it
has heard in the group.
"""
import os, select, socket, struct, sys

address, port, group = sys.argv[1], int(sys.argv[2]), sys.argv[3]
kept, orders, heard, out = (socket.socket(type=socket.SOCK_DGRAM) for _ in range(4))
kept.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
kept.bind((address, port))
orders.bind(("", port + 1))
heard.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
heard.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, struct.pack("=4s4si", socket.inet_aton(group), b"", socket.if_nametoindex("eth0")))
heard.bind(("", port + 2))
out.bind((address, port + 3))
out.connect(("10.77.0.250", 7000))
kept.setblocking(False)
print("ready datagrams", os.getpid(), flush=True)
while True:
    readable, _, _ = select.select([orders, heard], [], [])
    if heard in readable:
        out.send(heard.recv(2000))
    if orders in readable:
        order, who = orders.recvfrom(100)
        assert order == b"read", order
        lines = []
        while True:
            try:
                data, sender = kept.recvfrom(65536)
            except BlockingIOError:
                break
            lines.append("%d %d %d\n" % (sender[1], len(data), sum(data)))
        orders.sendto("".join(lines).encode(), who)
