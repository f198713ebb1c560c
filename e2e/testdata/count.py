"""Listens by TCP at one address, keeps all connections, and answers each line with it and
the number of lines that have come over that connection by then.

Usage: count.py ADDRESS PORT
"""
import os, selectors, socket, sys

address, port = sys.argv[1], int(sys.argv[2])
server = socket.create_server((address, port), family=socket.AF_INET6 if ":" in address else socket.AF_INET, backlog=1024)
server.setblocking(False)
selector = selectors.DefaultSelector()
selector.register(server, selectors.EVENT_READ)
unfinished, lines = {}, {}
print("ready count", os.getpid(), flush=True)
while True:
    for key, _ in selector.select():
        if key.fileobj is server:
            connection, _ = server.accept()
            selector.register(connection, selectors.EVENT_READ)
            unfinished[connection], lines[connection] = b"", 0
            continue
        connection = key.fileobj
        data = connection.recv(65536)
        if not data:
            selector.unregister(connection)
            connection.close()
            del unfinished[connection], lines[connection]
            continue
        *whole, unfinished[connection] = (unfinished[connection] + data).split(b"\n")
        answer = b""
        for line in whole:
            lines[connection] += 1
            answer += b"%s %d\n" % (line, lines[connection])
        connection.sendall(answer)
