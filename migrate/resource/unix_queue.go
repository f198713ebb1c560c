package resource

import (
	"errors"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate/image"
)

// errPassedDescriptors says that a queue holds what no other socket can be given.
var errPassedDescriptors = errors.New("descriptors are on their way in it (SCM_RIGHTS)")

// What was shut down (include/net/sock.h).
const (
	shutReceive = 1 << iota // RCV_SHUTDOWN
	shutSend                // SEND_SHUTDOWN
)

// socketQueue reads what has arrived at a socket and leaves it there. ended says
// that nothing more will come.
func socketQueue(fd, typ int, ended bool) ([]image.Message, error) {
	all := 0 // bytes of all packets
	if typ == unix.SOCK_SEQPACKET {
		var err error
		if all, err = unix.IoctlGetInt(fd, unix.SIOCINQ); err != nil {
			return nil, err
		}
	}
	// Where the program's own MSG_PEEK looks is put back.
	was, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF)
	if err != nil {
		return nil, err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, 0); err != nil {
		return nil, err
	}
	queue, err := peekAll(fd, typ, ended, all)
	return queue, errors.Join(err, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, was))
}

// peekAll looks at one message after the other. The kernel passes over an empty
// one that was looked at (__skb_try_recv_from_queue, net/core/datagram.c), so of
// empty ones only the first look tells.
func peekAll(fd, typ int, ended bool, all int) ([]image.Message, error) {
	var queue []image.Message
	at := 0    // bytes passed
	empty := 0 // messages in a row
	buf := make([]byte, 64<<10)
	control := make([]byte, 2<<10)
	for {
		r, err := receive(fd, buf, control, unix.MSG_PEEK|unix.MSG_DONTWAIT|unix.MSG_TRUNC|unix.MSG_CMSG_CLOEXEC)
		n := r.bytes
		if errors.Is(err, unix.EAGAIN) || err == nil && n == 0 && typ == unix.SOCK_STREAM {
			return queue, nil
		}
		if err != nil {
			return nil, err
		}
		m, err := readControl(control[:r.control])
		if err != nil {
			return nil, err
		}
		if n > len(buf) {
			// A message longer than the buffer: look at the same one again.
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, at); err != nil {
				return nil, err
			}
			buf = make([]byte, 2*n)
			continue
		}
		at += n
		if r.flags&unix.MSG_CTRUNC != 0 {
			return nil, errPassedDescriptors
		}
		if n > 0 {
			empty = 0
		} else if empty++; ended && typ == unix.SOCK_SEQPACKET && at == all && empty > 1 {
			return queue, nil // the end of a connection looks like that too, for ever
		}
		m.Data, m.From = slices.Clone(buf[:n]), r.from
		queue = append(queue, m)
	}
}

// overflowID is the user whom the kernel tells for none (/proc/sys/kernel/overflowuid).
const overflowID = 65534

// readControl takes the sender's credentials out of a message's control data.
func readControl(control []byte) (image.Message, error) {
	m, received, passed, err := parseControl(control)
	for _, fd := range received {
		unix.Close(fd)
	}
	if err == nil && passed {
		err = errPassedDescriptors
	}
	return m, err
}

// scmPIDFD is SCM_PIDFD (include/linux/socket.h): a descriptor of the sender,
// for a receiver that has asked for it.
const scmPIDFD = 4

// parseControl reads a message's control data: the sender's credentials, the
// descriptors that came with it, and whether the sender has passed any.
func parseControl(control []byte) (m image.Message, received []int, passed bool, err error) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return m, nil, false, err
	}
	var errs []error
	for _, c := range messages {
		if c.Header.Level != unix.SOL_SOCKET {
			continue
		}
		switch c.Header.Type {
		case unix.SCM_CREDENTIALS:
			creds, err := unix.ParseUnixCredentials(&c)
			errs = append(errs, err)
			if err == nil {
				m.PID, m.UID, m.GID = int(creds.Pid), creds.Uid, creds.Gid
				m.Known = m.PID != 0 || m.UID != overflowID // which stands for those that were not recorded
			}
		case unix.SCM_RIGHTS, scmPIDFD:
			passed = passed || c.Header.Type == unix.SCM_RIGHTS
			c.Header.Type = unix.SCM_RIGHTS // a pidfd lies there like one that is passed
			c.Data = c.Data[:len(c.Data)&^3]
			fds, err := unix.ParseUnixRights(&c)
			received, errs = append(received, fds...), append(errs, err)
		}
	}
	return m, received, passed, errors.Join(errs...)
}
