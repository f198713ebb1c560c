"""Listens by TCP at one address and answers each connection with a number, the next
one each time.

Usage: serve.py ADDRESS PORT
"""
import os, socket, sys

address, port = sys.argv[1], int(sys.argv[2])
server = socket.create_server((address, port), family=socket.AF_INET6 if ":" in address else socket.AF_INET)
number = 0
print("ready serve", os.getpid(), flush=True)
while True:
    connection, _ = server.accept()
    with connection:
        assert connection.recv(100) == b"next\n"
        number += 1
        connection.sendall(b"%d\n" % number)
        connection.recv(1)  # until the client ends: so it is the client that waits (TIME-WAIT)
