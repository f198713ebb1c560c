package main

import (
	"bufio"
	"fmt"
	"io"
)

// increment is the question to Redis: a counter of the client's own goes up by one with
// each, and says so (redis.io, RESP).
func increment(key string) func(conn io.Writer, answers *bufio.Reader, n int) error {
	return func(conn io.Writer, answers *bufio.Reader, n int) error {
		if _, err := fmt.Fprintf(conn, "*2\r\n$4\r\nINCR\r\n$%d\r\n%s\r\n", len(key), key); err != nil {
			return err
		}
		answer, err := answers.ReadString('\n')
		if want := fmt.Sprintf(":%d\r\n", n); err == nil && answer != want {
			err = fmt.Errorf("%q instead of %q", answer, want)
		}
		return err
	}
}
