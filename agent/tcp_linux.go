package agent

import (
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// pageSilence is how long what was sent on a page connection may stay without
// an answer of the other host's kernel, or its window shut. Without it a host
// that is cut off is noticed after a quarter of an hour (tcp(7), tcp_retries2),
// and a frozen process would stand still as long.
const pageSilence = 10 * time.Second

// limitSilence has a connection fail after pageSilence.
func limitSilence(conn net.Conn) error {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return fmt.Errorf("%T is no TCP connection", conn)
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return err
	}
	var optErr error
	err = raw.Control(func(fd uintptr) {
		optErr = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(pageSilence.Milliseconds()))
	})
	if err := errors.Join(err, optErr); err != nil {
		return fmt.Errorf("limiting the silence of a connection: %w", err)
	}
	// The side that only reads asks by probes.
	return tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: pageSilence / 2, Interval: time.Second, Count: 5})
}
