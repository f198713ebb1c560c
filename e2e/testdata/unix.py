"""Has unix sockets of all kinds, and answers a line on a connection to one of its listeners
with what it knows of them, as JSON.

Usage: unix.py DIR LOG

Below DIR it listens at "stream" and "packets" (under another name until it had renamed it),
and it listens at an abstract name of DIR. It has connections with that name and others, and
tells what has become of their names, users and data. Datagrams to "box" are kept until the next
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



def connected(listener, uid=0, asks=False):
    """A connection to a listener, seen as that of a user; asks: the client has got a name."""
    client = socket.socket(socket.AF_UNIX, listener.type)
    if asks:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    os.seteuid(uid)
    client.connect(listener.getsockname())
    os.seteuid(0)
    return client, listener.accept()[0]


os.seteuid(7)
closed = bound(socket.SOCK_SEQPACKET, b"\0closed" + top.encode())
closed.listen()
os.seteuid(0)
with_name = [connected(abstract), connected(abstract, 8), connected(abstract, 9, True), connected(closed), connected(closed, 8, True), connected(stream, 0, True)]
client, lost = connected(closed, 6)
client.send(b"said")
client.close()
closed.close()
names = [(c.getsockname(), c.getpeername(), a.getsockname(), a.getpeername()) for c, a in with_name]


def user(s):
    pid, uid, gid = struct.unpack("=3i", s.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return uid if pid == os.getpid() else -1


def about(client, accepted, names):
    """What can be told of a connection, and whether it leads both ways."""
    if (client.getsockname(), client.getpeername(), accepted.getsockname(), accepted.getpeername()) != names:
        return "other names"
    waits = accepted.recv(100, socket.MSG_DONTWAIT) if number > 1 else b"waits"
    accepted.send(b"answer")
    answer = client.recv(100, socket.MSG_DONTWAIT)
    client.send(b"waits")
    return "%s %s %d %d" % (waits.decode(), answer.decode(), user(client), user(accepted))


def free(s, name):
    """Whether a socket can have a name."""
    try:
        with s:
            s.bind(name)
        return "free"
    except OSError as e:
        return e.strerror


def of_name():
    said = lost.recv(100, socket.MSG_PEEK).decode()
    held = [free(socket.socket(socket.AF_UNIX, kind), name) for kind, name in (
        (socket.SOCK_SEQPACKET, lost.getsockname()), (abstract.type, abstract.getsockname()),
        (socket.SOCK_STREAM, names[5][0]), (socket.SOCK_SEQPACKET, names[4][0]))]
    return [about(*ends, known) for ends, known in zip(with_name, names)] + ["%s %d" % (said, user(lost))] + held


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
                "of_name": of_name(),
                "removed": removed.recv(100).decode(),
                "outer": outer.recv(100).decode(),
            }).encode())
