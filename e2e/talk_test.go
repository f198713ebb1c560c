package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/e2e/testbed"
)

// A talk is one client's, with the process of a fault.
type talk struct {
	f    *fault
	name string         // of the version of IP that it goes by
	at   netip.AddrPort // where it connects to
	*net.TCPConn
	lines *bufio.Reader
	done  chan error // of what goes on in the background
}

// dial connects once more; set may set options of the socket first.
func (k *talk) dial(set func(fd int) error) error {
	return within(k.f.t, "client", func() error {
		d := net.Dialer{Timeout: 20 * time.Second, Control: func(_, _ string, c syscall.RawConn) error {
			if set == nil {
				return nil
			}
			var err error
			controlErr := c.Control(func(fd uintptr) { err = set(int(fd)) })
			return errors.Join(controlErr, err)
		}}
		conn, err := d.DialContext(k.f.ctx, "tcp", k.at.String())
		if err != nil {
			return err
		}
		k.TCPConn, k.lines = conn.(*net.TCPConn), bufio.NewReader(conn)
		return conn.SetDeadline(time.Now().Add(time.Minute))
	})
}

// Lines of a size that fills all queues long before all are answered.
const (
	manyLines = 300
	lineBytes = 32 << 10
)

func longLine(n int) string { return strings.Repeat(string(rune('a'+n%26)), lineBytes) }

// writeMany writes all lines in the background, and ends that direction.
func (k *talk) writeMany() error {
	k.done = make(chan error, 1)
	go func() {
		for n := 1; n <= manyLines; n++ {
			if _, err := fmt.Fprintln(k, longLine(n)); err != nil {
				k.done <- err
				return
			}
		}
		k.done <- k.CloseWrite()
	}()
	// Nobody reads, so that all queues are full soon, and stay so.
	for filled, before := 0, -1; filled != before; {
		before = filled
		<-time.After(50 * time.Millisecond)
		raw, err := k.SyscallConn()
		if err != nil {
			return err
		}
		if err := raw.Control(func(fd uintptr) { filled, _ = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) }); err != nil {
			return err
		}
	}
	return nil
}

// readMany reads all answers, and the end.
func (k *talk) readMany() error {
	for n := 1; n <= manyLines; n++ {
		got, err := k.lines.ReadString('\n')
		if want := fmt.Sprintf("%s %d\n", longLine(n), n); err != nil || got != want {
			return fmt.Errorf("answer %d has %d bytes, %.20q..., and is wrong: %w", n, len(got), got, err)
		}
	}
	return errors.Join(k.readEnd(), <-k.done)
}

func (k *talk) readEnd() error {
	if rest, err := io.ReadAll(k.lines); err != nil || len(rest) > 0 {
		return fmt.Errorf("%.20q instead of the end: %w", rest, err)
	}
	return nil
}

func (k *talk) ask(text string, n int) error {
	if _, err := fmt.Fprintln(k, text); err != nil {
		return err
	}
	return k.hear(text, n)
}

func (k *talk) hear(text string, n int) error {
	got, err := k.lines.ReadString('\n')
	if want := fmt.Sprintf("%s %d\n", text, n); err != nil || got != want {
		return fmt.Errorf("%q instead of %q: %w", got, want, err)
	}
	return nil
}

// sentAgain is how many segments the client has sent again.
func (k *talk) sentAgain() int {
	n, err := (&testbed.Client{Conn: k.TCPConn}).SentAgain()
	if err != nil {
		k.f.t.Error(err)
	}
	return n
}

// say writes lines, each in a segment of its own, and waits for no answer.
func (k *talk) say(lines ...string) error {
	for _, line := range lines {
		if _, err := fmt.Fprintln(k, line); err != nil {
			return err
		}
	}
	return nil
}

// await waits until the kernel says of the client's side that something is so.
func (k *talk) await(what string, so func(*unix.TCPInfo) bool) error {
	raw, err := k.SyscallConn()
	if err != nil {
		return err
	}
	var info *unix.TCPInfo
	err = testbed.Await(limit(k.f.t, 10*time.Second), what, func() (bool, error) {
		var err error
		controlErr := raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.SOL_TCP, unix.TCP_INFO) })
		if err := errors.Join(controlErr, err); err != nil {
			return false, err
		}
		return so(info), nil
	})
	if err != nil {
		err = fmt.Errorf("%w: %+v", err, info)
	}
	return err
}
