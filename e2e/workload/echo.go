package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
)

// echo listens by TCP and answers each line with it and the number of lines that have
// come over that connection by then.
func echo(address string, j *journal) error {
	listener, err := net.Listen("tcp", address)
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
				if err := echoAll(conn); err != nil {
					j.problemf("answering %v: %v", conn.RemoteAddr(), err)
				}
			}()
		}
	}()
	return nil
}

func echoAll(conn io.ReadWriter) error {
	lines := bufio.NewReader(conn)
	for n := 1; ; n++ {
		line, err := lines.ReadString('\n')
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			_, err = fmt.Fprintf(conn, "%s %d\n", line[:len(line)-1], n)
		}
		if err != nil {
			return err
		}
	}
}
