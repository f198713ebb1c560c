package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"

	"golang.org/x/sys/unix"
)

// echo listens by TCP, or at a unix socket, and answers each line with it and the number of lines that have
// come over that connection by then. After the line "enough" it sends no more, and reads
// on.
func echo(network, address string, j *journal) error {
	listener, err := net.Listen(network, address)
	if err != nil {
		return err
	}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				j.problemf("accepting: %v", err)
				return
			}
			go func() {
				defer conn.Close()
				// A client may break off as it likes.
				if err := echoAll(conn); err != nil && !errors.Is(err, unix.ECONNRESET) {
					j.problemf("answering %v: %v", conn.RemoteAddr(), err)
				}
			}()
		}
	}()
	return nil
}

func echoAll(conn net.Conn) error {
	lines := bufio.NewReader(conn)
	for n := 1; ; n++ {
		line, err := lines.ReadString('\n')
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			_, err = fmt.Fprintf(conn, "%s %d\n", line[:len(line)-1], n)
		}
		if err == nil && line == "enough\n" {
			err = conn.(interface{ CloseWrite() error }).CloseWrite()
			if err == nil {
				_, err = io.Copy(io.Discard, lines)
			}
			return err
		}
		if err != nil {
			return err
		}
	}
}
