package tcprepair

import (
	"errors"

	"golang.org/x/sys/unix"
)

// A blocking call on a socket with a time-out ends with EINTR when Go preempts its
// goroutine by a signal (signal(7), "Interruption of system calls").
func again(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func readFrom(fd int, p []byte) (n int, err error) {
	err = again(func() error { n, err = unix.Read(fd, p); return err })
	return n, err
}

func writeTo(fd int, p []byte) (n int, err error) {
	err = again(func() error { n, err = unix.Write(fd, p); return err })
	return n, err
}

func acceptFrom(fd int) (opened int, from unix.Sockaddr, err error) {
	err = again(func() error { opened, from, err = unix.Accept(fd); return err })
	return opened, from, err
}
