"""Listens by TCP and accepts only as many connections as it is told to, over a connection
to the next port: each is answered with its number and the length of its first line, and kept.

Usage: slow.py ADDRESS PORT tcp|mptcp
"""
import os, socket, sys

address, port = sys.argv[1], int(sys.argv[2])
family = socket.AF_INET6 if ":" in address else socket.AF_INET
IPPROTO_MPTCP = 262

def listen(port, protocol=0):
    server = socket.socket(family, socket.SOCK_STREAM, protocol)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((address, port))
    server.listen(128)
    return server

clients = listen(port, IPPROTO_MPTCP if sys.argv[3] == "mptcp" else 0)
orders = listen(port + 1)
print("ready slow", os.getpid(), flush=True)
order, _ = orders.accept()
kept, number = [], 0
for line in order.makefile("rb"):
    for _ in range(int(line)):
        client, peer = clients.accept()
        kept.append(client)
        number += 1
        first = client.makefile("rb").readline()
        client.sendall(b"%d %d %s\n" % (number, len(first), peer[0].encode()))
    order.sendall(b"done %d\n" % number)
