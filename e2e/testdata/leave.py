"""Sends each client as much as its buffer takes, and closes the connection at once. The
first byte of a client is waited for.

Usage: leave.py ADDRESS PORT BYTES
"""
import os, socket, sys

server = socket.create_server((sys.argv[1], int(sys.argv[2])))
server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
print("ready leave", os.getpid(), flush=True)
while True:
    connection, _ = server.accept()
    connection.recv(1)
    connection.sendall(b"x" * int(sys.argv[3]))
    connection.close()
