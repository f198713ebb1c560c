"""Pings with a raw socket and with one of ping, and captures what comes and goes.

Usage: packets.py ADDRESS PEER FILE

It pings PEER by both, the raw one from ADDRESS, again and again, and counts the answers. A packet socket at eth0 with
a filter for ICMP must see each answer of the raw socket's. Before each round it looks whether
all options are as they were. It writes into FILE how many rounds there were, or what is wrong.
An answer that does not come within a second is asked for again: those under way during a move
are lost.
"""
import ctypes, os, socket, struct, sys, time

address, peer, path = sys.argv[1:4]
SOL_RAW, SOL_PACKET, ICMP_FILTER, SO_ATTACH_FILTER = 255, 263, 1, 26

raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
raw.setsockopt(SOL_RAW, ICMP_FILTER, struct.pack("=I", ~1 & 0xffffffff)) # echo replies alone
raw.setsockopt(socket.SOL_IP, socket.IP_TTL, 33)
raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 70000)
raw.bind((address, 0))
raw.connect((peer, 0))
ping = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
ping.bind(("", 4711))
ping.setsockopt(socket.SOL_IP, socket.IP_TTL, 34)
capture = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
# ldb [9]; jeq #1; ret #-1; ret #0
program = ctypes.create_string_buffer(struct.pack("HBBI" * 4, 0x30, 0, 0, 9, 0x15, 0, 1, 1, 6, 0, 0, 0xffffffff, 6, 0, 0, 0))
capture.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HxxxxxxQ", 4, ctypes.addressof(program)))
capture.setsockopt(SOL_PACKET, 8, 1)  # PACKET_AUXDATA
capture.setsockopt(SOL_PACKET, 23, 1)  # PACKET_IGNORE_OUTGOING
capture.setsockopt(SOL_PACKET, 1, struct.pack("=iHH8s", socket.if_nametoindex("eth0"), 1, 0, b""))  # PACKET_MR_PROMISC
capture.bind(("eth0", 0x0800))

def options():
    return (raw.getsockname(), raw.getsockopt(SOL_RAW, ICMP_FILTER, 4), raw.getsockopt(socket.SOL_IP, socket.IP_TTL), raw.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF),
        ping.getsockname(), ping.getsockopt(socket.SOL_IP, socket.IP_TTL), capture.getsockname()[:2], capture.getsockopt(SOL_PACKET, 8),
        capture.getsockopt(SOL_PACKET, 23), capture.getsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, 4))

def checksum(data):
    total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    total = (total >> 16) + (total & 0xffff)
    return ~(total + (total >> 16)) & 0xffff

def request(ident, number):
    head = struct.pack("!BBHHH", 8, 0, 0, ident, number)
    return head[:2] + struct.pack("!H", checksum(head)) + head[4:]

def await_answer(s, offset, want):
    """Takes what comes until an answer to want has, and reports whether it has."""
    end = time.monotonic() + 1
    while (left := end - time.monotonic()) > 0:
        s.settimeout(left)
        try:
            data = s.recv(2000)
        except TimeoutError:
            return False
        if data[offset:offset + 1] == b"\0" and data[offset + 4:offset + 8] == want:
            return True
        if data[offset:offset + 1] != b"\0" and s is raw:
            raise Exception("the filter lets in %r" % data)
    return False

def note(text):
    with open(path + ".new", "w") as f:
        f.write(text)
    os.rename(path + ".new", path)

print("ready packets", os.getpid(), flush=True)
try:
    first, number, missed = options(), 0, 0
    while True:
        number += 1
        low = number & 0xffff
        if options() != first:
            raise Exception("%r instead of %r" % (options(), first))
        while True:
            raw.send(request(815, low))
            if await_answer(raw, 20, struct.pack("!HH", 815, low)) and await_answer(capture, 20, struct.pack("!HH", 815, low)):
                break
            missed += 1
        while True:
            ping.sendto(request(0, low), (peer, 0))
            if await_answer(ping, 0, struct.pack("!HH", 4711, low)):
                break
            missed += 1
        note("%d rounds, %d missed" % (number, missed))
        time.sleep(0.002)
except BaseException as e:
    note("wrong after %d rounds: %r" % (number, e))
    raise
