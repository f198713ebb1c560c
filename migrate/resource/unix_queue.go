package resource

import (
	"errors"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate/image"
)

// errManyDescriptors says that not all descriptors that are on their way could be looked at.
var errManyDescriptors = errors.New("more descriptors are on their way in it (SCM_RIGHTS) than the agent may have open")

// arrived is a message as it is found in a queue, with descriptors of ours of what is on its
// way with it.
type arrived struct {
	image.Message
	passed []int
}

func closePassed(all []arrived) {
	for _, a := range all {
		closeAll(a.passed)
	}
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// What was shut down (include/net/sock.h).
const (
	shutReceive = 1 << iota // RCV_SHUTDOWN
	shutSend                // SEND_SHUTDOWN
)

// socketQueue reads what has arrived at a socket and leaves it there. ended says
// that nothing more will come. What has been passed is to be closed.
func socketQueue(fd, typ int, ended bool) ([]arrived, error) {
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
func peekAll(fd, typ int, ended bool, all int) (queue []arrived, err error) {
	defer func() {
		if err != nil {
			closePassed(queue)
			queue = nil
		}
	}()
	at := 0    // bytes passed
	empty := 0 // messages in a row
	buf := make([]byte, 64<<10)
	for {
		a, n, err := peek(fd, buf)
		if errors.Is(err, unix.EAGAIN) || err == nil && n == 0 && typ == unix.SOCK_STREAM {
			return queue, nil
		}
		if err != nil {
			return queue, err
		}
		if n > len(buf) || n == len(buf) && typ == unix.SOCK_STREAM && len(a.passed) > 0 {
			// A message longer than the buffer, or one that fills it, so that the descriptors may be
			// of a later one (unix_stream_read_generic): look at the same one again.
			closeAll(a.passed)
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, at); err != nil {
				return queue, err
			}
			buf = make([]byte, 2*n)
			continue
		}
		if n > 0 {
			empty = 0
		} else if empty++; ended && typ == unix.SOCK_SEQPACKET && at == all && empty > 1 {
			return queue, nil // the end of a connection looks like that too, for ever
		}
		if typ == unix.SOCK_STREAM && len(a.passed) > 0 {
			before, err := bytesBefore(fd, at, n)
			if err != nil {
				closeAll(a.passed)
				return queue, err
			}
			if before > 0 {
				plain := arrived{Message: a.Message}
				plain.Data, a.Data = a.Data[:before:before], a.Data[before:]
				queue = append(queue, plain)
			}
		}
		at += n
		queue = append(queue, a)
	}
}

// peek looks at what is next in a queue, and tells how long it is: it may not fit.
func peek(fd int, buf []byte) (a arrived, n int, err error) {
	control := make([]byte, 2<<10)
	r, err := receive(fd, buf, control, unix.MSG_PEEK|unix.MSG_DONTWAIT|unix.MSG_TRUNC|unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return a, 0, err
	}
	m, passed, err := readControl(control[:r.control])
	if err == nil && r.flags&unix.MSG_CTRUNC != 0 {
		err = errManyDescriptors
	}
	if err != nil {
		closeAll(passed)
		return a, 0, err
	}
	m.Data, m.From = slices.Clone(buf[:min(r.bytes, len(buf))]), r.from
	return arrived{m, passed}, r.bytes, nil
}

// bytesBefore tells how many of the n bytes of a stream, from the offset at on, were sent without
// the descriptors that a look at them shows: those are of the last piece, and belong to its first
// byte. A look takes pieces as a whole, or ends where one cannot be written
// (unix_stream_read_generic, net/unix/af_unix.c), so room for all but the last byte is offered.
// Afterwards the next look is behind the n bytes.
func bytesBefore(fd, at, n int) (before int, err error) {
	page := os.Getpagesize()
	size := (n + page - 1) / page * page
	memory, err := unix.Mmap(-1, 0, size+page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, unix.Munmap(memory)) }()
	if err := unix.Mprotect(memory[size:], unix.PROT_NONE); err != nil {
		return 0, err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, at); err != nil {
		return 0, err
	}
	r, err := receive(fd, memory[size-(n-1):size+1], nil, unix.MSG_PEEK|unix.MSG_DONTWAIT)
	if err != nil && !errors.Is(err, unix.EFAULT) { // of the first piece already
		return 0, err
	}
	return r.bytes, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, at+n)
}

// overflowID is the user whom the kernel tells for none (/proc/sys/kernel/overflowuid).
const overflowID = 65534

// readControl takes the sender's credentials and what it has passed out of a message's control
// data.
func readControl(control []byte) (image.Message, []int, error) {
	m, passed, others, err := parseControl(control)
	closeAll(others)
	return m, passed, err
}

// scmPIDFD is SCM_PIDFD (include/linux/socket.h): a descriptor of the sender,
// for a receiver that has asked for it.
const scmPIDFD = 4

// parseControl reads a message's control data: the sender's credentials, the
// descriptors that it has passed, and others that came with it.
func parseControl(control []byte) (m image.Message, passed, others []int, err error) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return m, nil, nil, err
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
			into := &passed
			if c.Header.Type == scmPIDFD {
				into = &others
			}
			c.Header.Type = unix.SCM_RIGHTS // a pidfd lies there like one that is passed
			c.Data = c.Data[:len(c.Data)&^3]
			fds, err := unix.ParseUnixRights(&c)
			*into, errs = append(*into, fds...), append(errs, err)
		}
	}
	return m, passed, others, errors.Join(errs...)
}
