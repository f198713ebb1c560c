"""Listens by TCP and answers each connection with a number, the next one each time.

Usage: listen.py PORT

It has all kinds of sockets without a connection: listeners of IPv4 at PORT and of
IPv6 at PORT+1, one that is bound to PORT+2 and listens from the tenth answer on, and
a new one.
"""
import os, select, socket, sys

port = int(sys.argv[1])
four = socket.create_server(("", port), backlog=7)
four.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
four.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 77)
six = socket.create_server(("::", port + 1), family=socket.AF_INET6)
bound = socket.socket()
bound.bind(("", port + 2))
new = socket.socket()
new.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
watch = select.epoll()
for s in (four, six):
    watch.register(s, select.EPOLLIN | select.EPOLLET)
by_number = {s.fileno(): s for s in (four, six)}

number = 0
print("ready listen", os.getpid(), flush=True)
while True:
    for fd, _ in watch.poll():
        connection, peer = by_number[fd].accept()
        with connection:
            assert connection.recv(100) == b"next\n"
            number += 1
            options = (
                connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
                new.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY),
                bound.getsockname()[1] - port,
            )
            connection.sendall(b"%d %s\n" % (number, repr(options).encode()))
            connection.recv(1)  # until the client ends: so it is the client that waits (TIME-WAIT)
        if number == 10:
            bound.listen()
            watch.register(bound, select.EPOLLIN)
            by_number[bound.fileno()] = bound
