"""Takes datagrams at a unix socket, and writes each as a line to a file.

Usage: log.py SOCKET FILE
"""
import os, socket, sys

if os.path.exists(sys.argv[1]):
    os.unlink(sys.argv[1])  # of an earlier run
box = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
box.bind(sys.argv[1])
with open(sys.argv[2], "a", buffering=1) as out:
    print("ready log", os.getpid(), flush=True)
    while True:
        out.write(box.recv(1000).decode() + "\n")
