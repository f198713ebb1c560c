// Demo shows moves on one machine: it makes a lab of three hosts, starts a server on the
// first (Redis if it is installed, one of its own otherwise) and clients that ask it all
// the time over connections that they keep, moves the server from host to host with
// migratectl, as anybody would, tells what the clients have seen of it, and takes the lab
// down. "make demo" runs it.
//
// Exit code 0 means that everything worked and that no client has seen an error.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/e2e/lab"
	"github.com/pagurus-project/pagurus/e2e/testbed"
)

const (
	service = "10.77.0.100/24"
	port    = 6379
	clients = 50

	// startPatience is how long a server may take until it listens.
	startPatience = 20 * time.Second
)

// route is where the server goes, from host-a on.
var route = []string{"host-b", "host-c", "host-a"}

func main() {
	lab.Main() // a lab's hosts are this program run again
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	if err := run(ctx, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer) (err error) {
	step(out, "Making a lab: three hosts in this machine, a coordinator and an agent on each")
	bed, err := testbed.Up(ctx, lab.Options{Progress: func(what string) { fmt.Fprintln(out, "  "+what) }})
	if err != nil {
		return err
	}
	defer func() {
		step(out, "Taking the lab down")
		err = errors.Join(err, bed.Down(context.WithoutCancel(ctx)))
	}()

	address := netip.MustParsePrefix(service)
	step(out, fmt.Sprintf("migratectl address add %s --host host-a", service))
	if err := command(ctx, bed, out, "address", "add", service, "--host", "host-a"); err != nil {
		return err
	}
	s, err := start(ctx, bed, out, address.Addr())
	if err != nil {
		return err
	}
	asking, err := s.connect(ctx, bed)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "  %d clients on another host are connected to it, and ask about once a millisecond\n", len(asking))

	for _, to := range route {
		step(out, fmt.Sprintf("migratectl move %d --from %s --to %s", s.PID, s.Host, to))
		seen := asking.During(func() {
			err = command(ctx, bed, out, "move", fmt.Sprint(s.PID), "--from", s.Host, "--to", to)
		})
		if err != nil {
			return fmt.Errorf("moving process %d from %s to %s: %w", s.PID, s.Host, to, err)
		}
		s.Host = to
		fmt.Fprintf(out, "\n  the clients: %d requests, %d errors, the longest stall was %v\n", seen.Requests, len(seen.Errors), seen.Longest.Round(100*time.Microsecond))
		if err := errors.Join(seen.Errors...); err != nil {
			return err
		}
	}
	return asking.End()
}

// step announces what comes next.
func step(out io.Writer, what string) { fmt.Fprintf(out, "\n» %s\n", what) }

// command runs migratectl.
func command(ctx context.Context, bed *testbed.Bed, out io.Writer, args ...string) error {
	c := bed.Command(ctx, args...)
	c.Stdout, c.Stderr = out, os.Stderr
	// Ctrl-C reaches migratectl as well, which cancels a move and says so.
	c.Cancel = func() error { return nil }
	return c.Run()
}

// A server is what is moved.
type server struct {
	*testbed.Process
	at    netip.AddrPort
	redis bool
}

// start starts the server.
func start(ctx context.Context, bed *testbed.Bed, out io.Writer, a netip.Addr) (*server, error) {
	s := &server{at: netip.AddrPortFrom(a, port)}
	args := []string{"$BIN/workload", "memory", "-size", "64MiB", "-echo", s.at.String(), "-ask", "$ASK"}
	what := "a server of our own (Redis is not installed)"
	if redis, err := exec.LookPath("redis-server"); err == nil {
		s.redis, what = true, "Redis"
		args = []string{
			"sh", "-c", `echo ready; exec "$@"`, "sh", redis, "--bind", a.String(), "--port", fmt.Sprint(port),
			"--protected-mode", "no", "--save", "", "--appendonly", "yes", "--dir", "$DIR",
		}
	}
	step(out, "Starting "+what+" on host-a, at that address")
	var err error
	if s.Process, err = bed.Start(ctx, "host-a", args...); err != nil {
		return nil, err
	}
	fmt.Fprintf(out, "  it is process %d\n", s.PID)
	return s, nil
}

// connect connects the clients, as soon as the server listens.
func (s *server) connect(ctx context.Context, bed *testbed.Bed) (all testbed.Clients, err error) {
	waiting, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	for i := range clients {
		question := testbed.Line
		if s.redis {
			question = increment(fmt.Sprint("client", i))
		}
		var c *testbed.Client
		err := testbed.Await(waiting, "the server to listen", func() (bool, error) {
			c, err = bed.Dial(waiting, "client", s.at, question)
			return err == nil, nil
		})
		if err != nil {
			return nil, errors.Join(err, all.Close())
		}
		all = append(all, c)
	}
	return all, nil
}
