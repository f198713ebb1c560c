package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/e2e/lab/control"
)

// A Command is a program to run on a host. Args[0] is looked up in the PATH of
// Env, on the host; a nil Env or an empty Dir is the caller's own.
type Command struct {
	Args []string
	Env  []string
	Dir  string

	// The command gets these descriptors themselves, no copies of what flows.
	Stdin, Stdout, Stderr *os.File

	// Signals that arrive here go to the command's process group; nil for none.
	Signals <-chan os.Signal
}

func (c Command) request(detach bool) (*control.Request, error) {
	e := &control.Exec{Args: c.Args, Env: c.Env, Dir: c.Dir, Detach: detach}
	if e.Env == nil {
		e.Env = os.Environ()
	}
	if e.Dir == "" {
		var err error
		if e.Dir, err = os.Getwd(); err != nil {
			return nil, fmt.Errorf("looking for the working directory: %w", err)
		}
	}
	return &control.Request{Exec: e}, nil
}

// Run runs a command to its end and returns its exit status, 128 + n for death
// by signal n. When ctx ends, the command's process group is killed. With an
// error the status is 0, or 126 or 127 if the host has no such command.
func (h *Host) Run(ctx context.Context, c Command) (int, error) {
	request, err := c.request(false)
	if err != nil {
		return 0, err
	}
	connection, err := h.dial()
	if err != nil {
		return 0, err
	}
	defer connection.Close()
	if err := connection.Send(request, c.Stdin, c.Stdout, c.Stderr); err != nil {
		return 0, fmt.Errorf("asking %s to run %s: %w", h.Name(), c.Args[0], err)
	}
	if _, err := receive(connection); err != nil {
		return startStatus(err), err
	}
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		for {
			select {
			case s := <-c.Signals:
				_ = connection.Send(control.Signal{Signal: s.(syscall.Signal)}) // it may have ended meanwhile
			case <-ctx.Done():
				_ = connection.Send(control.Signal{Signal: unix.SIGKILL})
				return
			case <-ended:
				return
			}
		}
	}()
	reply, err := receive(connection)
	switch {
	case err != nil && errors.Is(err, io.EOF):
		return 0, fmt.Errorf("%s went down while %s ran", h.Name(), c.Args[0])
	case err != nil:
		return 0, err
	case ctx.Err() != nil:
		return 0, fmt.Errorf("running %s on %s: %w", c.Args[0], h.Name(), ctx.Err())
	}
	return reply.Exit.Status(), nil
}

// startStatus is the exit status of a command that a host did not start.
func startStatus(err error) int {
	if refusal, ok := errors.AsType[*control.Error](err); ok {
		return refusal.Status
	}
	return 0
}

// An ExitError is a command that did not end with exit status 0.
type ExitError struct {
	Host   string
	Args   []string
	Status int
	Stderr string
}

func (e *ExitError) Error() string {
	return fmt.Sprintf("%s on %s: exit status %d: %s", strings.Join(e.Args, " "), e.Host, e.Status, strings.TrimSpace(e.Stderr))
}

// Exec runs a command without input and returns what it writes. It waits until
// nobody has the output open any more. The error is an [*ExitError] if the
// command ended with another status than 0.
func (h *Host) Exec(ctx context.Context, args ...string) (string, error) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return "", err
	}
	defer null.Close()
	var stdout, stderr bytes.Buffer
	var copies errgroup.Group
	outWriter, err := pipeInto(ctx, &copies, &stdout)
	if err != nil {
		return "", err
	}
	errWriter, err := pipeInto(ctx, &copies, &stderr)
	if err != nil {
		return "", errors.Join(err, outWriter.Close())
	}
	status, err := h.Run(ctx, Command{Args: args, Dir: "/", Stdin: null, Stdout: outWriter, Stderr: errWriter})
	err = errors.Join(err, outWriter.Close(), errWriter.Close(), copies.Wait())
	if err == nil && status != 0 {
		err = &ExitError{Host: h.Name(), Args: args, Status: status, Stderr: stderr.String()}
	}
	return stdout.String(), err
}

// pipeInto makes a pipe for a command to write to, which is read into to.
func pipeInto(ctx context.Context, copies *errgroup.Group, to io.Writer) (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	_ = w.Fd() // makes it a pipe that blocks, as programs expect
	copies.Go(func() error {
		defer r.Close()
		defer context.AfterFunc(ctx, func() { _ = r.SetReadDeadline(time.Unix(1, 0)) })()
		_, err := io.Copy(to, r)
		return err
	})
	return w, nil
}

// A Process was started on a host and left to itself.
type Process struct {
	PID int    // as seen on its host
	Log string // file with its output
}

// Start runs a command detached: in a session of its own, without input, with
// its output in a log, as a child of the host's PID 1.
func (h *Host) Start(ctx context.Context, c Command) (Process, error) {
	request, err := c.request(true)
	if err != nil {
		return Process{}, err
	}
	reply, err := h.ask(ctx, request)
	return Process{PID: reply.PID, Log: reply.Log}, err
}
