"""Has descriptors on their way in unix sockets (SCM_RIGHTS), and answers a line on a connection to
"stream" in DIR: it receives them, tells as JSON what has become of each, and sends them again.

Usage: passing.py DIR FILE

Some of them it holds, too, by another descriptor; others are on their way alone.
"""
import array, ctypes, json, os, socket, struct, sys

top, content = sys.argv[1:3]
libc = ctypes.CDLL(None, use_errno=True)
listener = socket.socket(socket.AF_UNIX)
listener.bind(top + "/stream")
listener.listen()
abstract = socket.socket(socket.AF_UNIX)
abstract.bind(b"\0passing" + top.encode())
abstract.listen()
to_abstract = socket.socket(socket.AF_UNIX)
to_abstract.connect(abstract.getsockname())

streams = socket.socketpair()
packets = socket.socketpair(type=socket.SOCK_SEQPACKET)
accepted = (to_abstract, abstract.accept()[0])
named = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
named.bind(top + "/box")
to_named = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
to_named.connect(top + "/box")
named.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
streams[1].setblocking(False)
ways = {"stream": streams, "packets": packets, "abstract": accepted, "datagrams": (to_named, named)}

with open(top + "/file", "w") as f:
    f.write("0123456789")
held = os.open(top + "/file", os.O_RDWR)
held_event = os.eventfd(0)
tcp = socket.create_server(("127.0.0.1", 0))
half, half_write = os.pipe()
os.write(half_write, b"half")
watch = libc.inotify_init1(os.O_NONBLOCK)
libc.inotify_add_watch(watch, (top + "/file").encode(), 2)
mark = 0


def send(way, data, *fds):
    ways[way][0].sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])


def take(way, size=100, count=1):
    data, told, flags, _ = ways[way][1].recvmsg(size, 2000)
    fds = array.array("i")
    for level, kind, value in told:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(value)
    assert len(fds) == count and not flags & socket.MSG_CTRUNC, (way, data, fds, flags)
    return [data.decode(), *fds]


def memory(name, content):
    fd = os.memfd_create(name) if name else os.open(top, os.O_RDWR | os.O_TMPFILE)
    os.write(fd, content)
    return fd


def send_all():
    global half_write, watch, mark
    mark += 1
    os.lseek(held, mark % 10, 0)
    ways["stream"][0].send(b"plain")
    send("stream", b"held", held, held_event)
    send("stream", b"again", held)
    read = os.open(top + "/file", os.O_RDONLY)
    os.lseek(read, 7, 0)
    send("stream", b"alone", read)
    send("packets", b"same", read, read)
    os.close(read)
    event = os.eventfd(mark, os.EFD_SEMAPHORE)
    send("packets", b"event", event)
    os.close(event)
    for fd in os.open(content, os.O_RDONLY), os.open(content, os.O_RDONLY | os.O_CLOEXEC):
        send("packets", b"content", fd)
        os.close(fd)
    both = os.pipe()
    os.write(both[1], b"in the pipe")
    send("packets", b"pipe", both[0])
    send("abstract", b"pipe", both[1], half_write)
    for fd in (*both, half_write):
        os.close(fd)
    for fd in (memory("m", b"in memory %d" % mark), memory("", b"deleted")):
        send("abstract", b"memory", fd)
        os.close(fd)
    sink = os.open("/dev/null", os.O_WRONLY)
    directory = os.open(top, os.O_DIRECTORY)
    where = os.open(top + "/file", os.O_PATH)
    send("datagrams", b"box", sink, directory, where, listener.fileno(), tcp.fileno(), named.fileno())
    for fd in (sink, directory, where):
        os.close(fd)
    send("datagrams", b"watch", watch)
    os.close(watch)
    timer = libc.timerfd_create(1, 0)
    libc.timerfd_settime(timer, 0, struct.pack("qqqq", 0, 10**6, 0, 10**6), None)
    send("datagrams", b"timer", timer)
    os.close(timer)
    # The socket that it is on its way in, and the other end.
    send("stream", b"self", streams[0].fileno(), streams[1].fileno())


def take_all():
    global half_write, watch
    found, mine = [], []

    def said(what, *more):
        found.append(" ".join(map(str, (what, *more))))

    def takes(*args):
        what, *fds = take(*args)
        mine.extend(fds)
        return what, *fds

    def position(fd):
        return os.lseek(fd, 0, 1)

    said(takes("stream", 5, 0)[0])
    what, file, event = takes("stream", 100, 2)
    os.eventfd_write(event, 3)
    said(what, position(file) == mark % 10, os.eventfd_read(held_event))
    what, again = takes("stream")
    os.lseek(again, 5, 0)
    said(what, position(held), position(file))
    what, alone = takes("stream")
    what2, same, twice = takes("packets", 100, 2)
    said(what, what2, os.read(alone, 2).decode(), position(same), position(twice), os.get_inheritable(same))
    what, event = takes("packets")
    said(what, os.eventfd_read(event), os.eventfd_read(event) if mark > 1 else 1)
    (what, one), (_, other) = takes("packets"), takes("packets")
    said(what, os.read(one, 5).decode(), os.read(other, 50).decode())
    what, read = takes("packets")
    _, write, half_write = take("abstract", 100, 2)
    mine.append(write)
    os.write(write, b", more")
    os.write(half_write, b"x")
    said(what, os.read(read, 100).decode(), os.read(half, 100).decode())
    for content in b"in memory %d" % mark, b"deleted":
        what, fd = takes("abstract")
        said(what, os.pread(fd, 100, 0) == content, position(fd) == len(content), os.fstat(fd).st_nlink)
    what, sink, directory, where, *sockets = takes("datagrams", 100, 6)
    said(what, os.write(sink, b"x"), sorted(os.listdir(directory)), os.readlink("/proc/self/fd/%d" % where) == top + "/file",
         *(os.fstat(a).st_ino == os.fstat(b.fileno()).st_ino for a, b in zip(sockets, (listener, tcp, named))))
    _, watch = take("datagrams")
    os.pwrite(held, b"0", 0)
    said("watch", len(os.read(watch, 100)) >= 16)
    what, timer = takes("datagrams")
    said(what, struct.unpack("Q", os.read(timer, 8))[0] > 0)
    what, *ends = takes("stream", 100, 2)
    said(what, *(os.fstat(a).st_ino == os.fstat(b.fileno()).st_ino for a, b in zip(ends, streams)))
    for fd in mine:
        os.close(fd)
    return found


send_all()
print("ready passing", os.getpid(), flush=True)
while True:
    connection, _ = listener.accept()
    with connection:
        assert connection.recv(100) == b"next\n"
        try:
            found = take_all()
            send_all()
        except Exception as e:
            found = [repr(e), "line %d" % e.__traceback__.tb_lineno, "line %d" % (e.__traceback__.tb_next or e.__traceback__).tb_lineno]
        connection.sendall(json.dumps({"found": found}).encode())
