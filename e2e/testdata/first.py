"""Listens by TCP, answers the first line of each connection with it, and closes first.

Usage: first.py ADDRESS PORT
"""
import os, socket, sys

address, port = sys.argv[1], int(sys.argv[2])
server = socket.create_server((address, port), family=socket.AF_INET6 if ":" in address else socket.AF_INET)
print("ready first", os.getpid(), flush=True)
while True:
    client, _ = server.accept()
    with client:
        client.sendall(client.makefile("rb").readline())
