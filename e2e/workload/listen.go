package main

import (
	"bufio"
	"flag"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync/atomic"

	"github.com/pagurus-project/pagurus/e2e/workload/verdict"
)

// listen answers each connection with the next number, as a Go program does: by
// a listener for IPv4 and IPv6, which takes multipath TCP.
type listen struct {
	port    int
	journal *journal
	number  atomic.Int64
}

func newListen(flags *flag.FlagSet, j *journal) program {
	l := &listen{journal: j}
	flags.IntVar(&l.port, "port", 7311, "where it listens")
	return l
}

func (l *listen) start() error {
	listener, err := net.Listen("tcp", net.JoinHostPort("", strconv.Itoa(l.port)))
	if err != nil {
		return err
	}
	go func() {
		for {
			conn, err := listener.Accept()
			if err == nil {
				err = l.answer(conn)
			}
			if err != nil {
				l.journal.problemf("%v", err)
			}
		}
	}()
	return nil
}

// answer ends when the client has ended: so it is the client that waits (TIME-WAIT).
func (l *listen) answer(conn net.Conn) error {
	defer conn.Close()
	r := bufio.NewReader(conn)
	if _, err := r.ReadString('\n'); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(conn, l.number.Add(1)); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, r)
	return err
}

func (l *listen) verify() findings {
	return findings{counts: map[string]int64{"answers": l.number.Load()}, threads: []verdict.Thread{}}
}
