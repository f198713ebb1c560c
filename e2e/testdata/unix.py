"""Has unix sockets of all kinds, and answers a line on a connection to one of its listeners
with what it knows of them, as JSON.

Usage: unix.py DIR LOG

Below DIR it listens at "stream" and "packets" (under another name until it had renamed it),
and it listens at an abstract name of DIR. Datagrams to "box" are kept until the next
question, and told with who has sent them. For each question it sends one to LOG.
"""
import json, os, selectors, socket, struct, sys

top, log_at = sys.argv[1], sys.argv[2]
os.chdir(top)


def bound(kind, name):
    s = socket.socket(socket.AF_UNIX, kind)
    s.bind(name)
    return s


def to(kind, name):
    s = socket.socket(socket.AF_UNIX, kind)
    s.connect(name)
    return s


stream = bound(socket.SOCK_STREAM, top + "/stream")
os.chmod(top + "/stream", 0o606)
packets = bound(socket.SOCK_SEQPACKET, "packets.new")
os.rename("packets.new", "packets")
abstract = bound(socket.SOCK_STREAM, b"\0pagurus" + top.encode())
listeners = [stream, packets, abstract]
for s in listeners:
    s.listen(9)
box = bound(socket.SOCK_DGRAM, top + "/box")
box.setblocking(False)
box.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
SO_TIMESTAMP = 29
box.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMP, 1)
named = bound(socket.SOCK_DGRAM, b"\0named" + top.replace("/", "-").encode())
removed = bound(socket.SOCK_DGRAM, "removed")
inner = to(socket.SOCK_STREAM, top + "/stream")
outer, _ = stream.accept()
to_box, to_removed, log = to(socket.SOCK_DGRAM, top + "/box"), to(socket.SOCK_DGRAM, "removed"), to(socket.SOCK_DGRAM, log_at)
os.unlink("removed")
waits = bound(socket.SOCK_STREAM, "waits")  # for nothing
new = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)

selector = selectors.DefaultSelector()
for s in listeners:
    selector.register(s, selectors.EVENT_READ)
number = 0
print("ready unix", os.getpid(), flush=True)
while True:
    for key, _ in selector.select():
        connection, _ = key.fileobj.accept()
        with connection:
            assert connection.recv(100) == b"next\n"
            number += 1
            for s, data in ((to_box, b"own"), (to_removed, b"removed"), (log, b"%d" % number), (inner, b"inner")):
                s.send(data)
            kept = []
            while True:
                try:
                    data, told, _, sender = box.recvmsg(1000, 100)
                except BlockingIOError:
                    break
                kinds = {kind: value for _, kind, value in told}
                pid, uid, gid = struct.unpack("=3i", kinds[socket.SCM_CREDENTIALS])
                assert len(kinds[SO_TIMESTAMP]) == 16, kinds
                name = "named" if sender == named.getsockname() else sender and os.path.basename(sender)
                kept.append([data.decode(), name, "%s %d" % ("own" if pid == os.getpid() else "other", uid)])
            to_box.send(b"left")  # for the next question
            named.sendto(b"left by name", top + "/box")
            connection.sendall(json.dumps({
                "number": number,
                "names": [str(s.getsockname()) for s in (stream, packets, abstract, box, removed, inner, outer, waits, new)],
                "peers": [str(s.getpeername()) for s in (inner, to_box, to_removed, log)],
                "kept": kept,
                "removed": removed.recv(100).decode(),
                "outer": outer.recv(100).decode(),
            }).encode())
