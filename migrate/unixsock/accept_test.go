package unixsock

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// A connection is accepted past those of strangers, before it and behind it, who are turned away.
func TestAccept(t *testing.T) {
	enterNetwork(t)
	const name = "\x00accept"
	for _, typ := range []int{unix.SOCK_STREAM, unix.SOCK_SEQPACKET} {
		listener := listening(t, typ, name, 9)
		var strangers []int
		client := newSocket(t, typ)
		for i := range 4 {
			if i == 2 {
				check(t, Connect(client, []byte(name)))
			}
			strangers = append(strangers, newSocket(t, typ))
			check(t, Connect(strangers[i], []byte(name)))
		}
		gone := strangers[0]
		closeSocket(t, gone)
		accepted, err := Accept(listener, client)
		check(t, err)
		closeSocket(t, listener)
		if got := nameOf(t, accepted); got != name {
			t.Errorf("the name %q", got)
		}
		if _, err := unix.Write(client, []byte("ours")); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 10)
		if n, err := unix.Read(accepted, buf); err != nil || string(buf[:n]) != "ours" {
			t.Errorf("%q, %v", buf[:max(n, 0)], err)
		}
		for _, fd := range strangers[1:] {
			if n, err := unix.Read(fd, buf); n > 0 || err != nil && !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("a stranger is connected: %d, %v", n, err)
			}
		}
		again := bound(t, typ, name) // nobody has the name any more
		closeSocket(t, again)
		check(t, unix.Close(accepted))
	}
}

// Who has not connected is not waited for.
func TestAcceptNobody(t *testing.T) {
	enterNetwork(t)
	listener := listening(t, unix.SOCK_STREAM, "\x00accept", 9)
	if fd, err := Accept(listener, newSocket(t, unix.SOCK_STREAM)); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("%d, %v", fd, err)
	}
}
