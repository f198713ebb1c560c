package inet

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Shutdown is what shutdown(2) has ended (include/net/sock.h).
type Shutdown uint8

// Its bits.
const (
	ShutReceive Shutdown = 1 << iota
	ShutSend
)

// ReadShutdown asks by poll(2): a socket of datagrams that was shut down for sending alone
// looks like one that was not.
func ReadShutdown(fd int) (s Shutdown, err error) {
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
	if _, err := unix.Poll(poll, 0); err != nil {
		return 0, err
	}
	if poll[0].Revents&unix.POLLRDHUP != 0 {
		s |= ShutReceive
	}
	if poll[0].Revents&unix.POLLHUP != 0 {
		s |= ShutReceive | ShutSend
	}
	return s, nil
}

// Apply ends what was shut down. The kernel does so without a connection, too, and says
// that there is none (inet_shutdown, net/ipv4/af_inet.c).
func (s Shutdown) Apply(fd int) error {
	how, ok := map[Shutdown]int{ShutReceive: unix.SHUT_RD, ShutSend: unix.SHUT_WR, ShutReceive | ShutSend: unix.SHUT_RDWR}[s]
	if !ok {
		return nil
	}
	if err := unix.Shutdown(fd, how); err != nil && !errors.Is(err, unix.ENOTCONN) {
		return fmt.Errorf("shutting down: %w", err)
	}
	return nil
}
