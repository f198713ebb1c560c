"""Asks a server that answers lines with their number, over one connection from an address
of its own, and checks every answer. With "self" it is the server, too, in another thread,
with "everywhere" at all addresses. It counts in a file, and writes there what is wrong.

Usage: talk.py FROM TO PORT FILE [self|everywhere]
"""
import os, socket, sys, threading, time

source, to, port, path = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]

def serve(listener):
    connection, _ = listener.accept()
    for number, line in enumerate(connection.makefile("rb"), 1):
        connection.sendall(b"%s %d\n" % (line[:-1], number))

if sys.argv[5] in ("self", "everywhere"):
    listener = socket.create_server((to if sys.argv[5] == "self" else "", port))
    threading.Thread(target=serve, args=(listener,), daemon=True).start()
connection = socket.create_connection((to, port), source_address=(source, 0))
lines = connection.makefile("rb")
print("ready talk", os.getpid(), flush=True)

def note(text):
    with open(path + ".new", "w") as f:
        f.write(text)
    os.rename(path + ".new", path)

try:
    number, longest = 0, 0
    while True:
        number += 1
        begun = time.monotonic()
        connection.sendall(b"line %d\n" % number)
        got, want = lines.readline(), b"line %d %d\n" % (number, number)
        longest = max(longest, time.monotonic() - begun)
        if got != want:
            raise Exception("%r instead of %r" % (got, want))
        if number % 10 == 0:
            note("%d answers, the longest stall was %.1f ms" % (number, 1000 * longest))
        time.sleep(0.001)
except BaseException as e:
    note("wrong after %d answers: %r" % (number, e))
    raise
