package testbed

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Within calls f in the network of a host, on a thread that ends with it. What f opens
// stays in that network.
func (b *Bed) Within(host string, f func() error) error {
	h, err := b.Lab.Host(host)
	if err != nil {
		return err
	}
	root, err := h.Root()
	if err != nil {
		return err
	}
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good
		ns, err := unix.Open(filepath.Join(filepath.Dir(root), "ns", "net"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			result <- err
			return
		}
		defer unix.Close(ns)
		if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
			result <- err
			return
		}
		result <- f()
	}()
	return <-result
}

// A Question asks a server for the nth time over a connection, and checks the answer.
type Question func(conn io.Writer, answers *bufio.Reader, n int) error

// Line is the question to servers that answer a line with it and its number.
func Line(conn io.Writer, answers *bufio.Reader, n int) error {
	if _, err := fmt.Fprintf(conn, "line %d\n", n); err != nil {
		return err
	}
	answer, err := answers.ReadString('\n')
	if want := fmt.Sprintf("line %d %d\n", n, n); err == nil && answer != want {
		err = fmt.Errorf("%q instead of %q", answer, want)
	}
	return err
}

// A Client asks a server over one connection. One goroutine at a time uses it.
type Client struct {
	Conn    *net.TCPConn
	Asked   int
	Longest time.Duration // that it waited for an answer

	question Question
	answers  *bufio.Reader
}

// patience is how long an answer may take.
const patience = 40 * time.Second

// Dial connects from a host.
func (b *Bed) Dial(ctx context.Context, from string, to netip.AddrPort, q Question) (*Client, error) {
	c := &Client{question: q}
	err := b.Within(from, func() error {
		conn, err := (&net.Dialer{Timeout: patience}).DialContext(ctx, "tcp", to.String())
		if err == nil {
			c.Conn = conn.(*net.TCPConn)
			c.answers = bufio.NewReader(conn)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return c, nil
}

// Ask asks once.
func (c *Client) Ask() error {
	begun := time.Now()
	err := c.Conn.SetDeadline(begun.Add(patience))
	if err == nil {
		c.Asked++
		err = c.question(c.Conn, c.answers, c.Asked)
	}
	if err != nil {
		return fmt.Errorf("asking for the %d. time, after %v: %w", c.Asked, time.Since(begun), err)
	}
	c.Longest = max(c.Longest, time.Since(begun))
	return nil
}

// SentAgain is how many segments the client's side has sent more than once.
func (c *Client) SentAgain() (int, error) {
	raw, err := c.Conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var info *unix.TCPInfo
	controlErr := raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.SOL_TCP, unix.TCP_INFO) })
	if err := errors.Join(controlErr, err); err != nil {
		return 0, err
	}
	return int(info.Total_retrans), nil
}

// End ends the connection, waits for the server's end, and closes.
func (c *Client) End() error {
	err := c.Conn.CloseWrite()
	if err == nil {
		_, err = io.Copy(io.Discard, c.answers)
	}
	return errors.Join(err, c.Conn.Close())
}

// Clients are several of them.
type Clients []*Client

// DialAll connects n clients.
func (b *Bed) DialAll(ctx context.Context, from string, to netip.AddrPort, n int, q Question) (Clients, error) {
	var all Clients
	for range n {
		c, err := b.Dial(ctx, from, to, q)
		if err != nil {
			return all, errors.Join(err, all.Close())
		}
		all = append(all, c)
	}
	return all, nil
}

// Seen is what clients have seen.
type Seen struct {
	Requests int
	Longest  time.Duration // that one of them waited for an answer
	Errors   []error
}

// pause is what a client lets go by between an answer and the next question.
const pause = time.Millisecond

// During has all of them ask, about once a millisecond, while f goes on, and once more
// when it has returned. One whose question fails ends with that.
func (all Clients) During(f func()) Seen {
	over := make(chan struct{})
	var asking sync.WaitGroup
	var mu sync.Mutex
	var seen Seen
	for i, c := range all {
		c.Longest = 0
		asking.Go(func() {
			before := c.Asked
			var err error
			for last := false; !last && err == nil; {
				select {
				case <-over:
					last = true
				case <-time.After(pause):
				}
				err = c.Ask()
			}
			mu.Lock()
			defer mu.Unlock()
			seen.Requests += c.Asked - before
			seen.Longest = max(seen.Longest, c.Longest)
			if err != nil {
				seen.Errors = append(seen.Errors, fmt.Errorf("client %d: %w", i, err))
			}
		})
	}
	func() {
		defer asking.Wait()
		defer close(over) // f may end the goroutine
		f()
	}()
	return seen
}

// End ends all of them.
func (all Clients) End() error {
	var errs []error
	for i, c := range all {
		if err := c.End(); err != nil {
			errs = append(errs, fmt.Errorf("client %d: %w", i, err))
		}
	}
	return errors.Join(errs...)
}

// Close closes all of them, whatever the server has to say.
func (all Clients) Close() error {
	var errs []error
	for _, c := range all {
		errs = append(errs, c.Conn.Close())
	}
	return errors.Join(errs...)
}
