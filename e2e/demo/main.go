// Demo shows a move on one machine: it makes a lab of three hosts, starts a
// program on the first that checks its own memory all the time, moves it from
// host to host with migratectl, as anybody would, asks the program for its own
// opinion, and takes the lab down. "make demo" runs it.
//
// Exit code 0 means that everything worked and the program found nothing wrong.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/e2e/lab"
	"github.com/pagurus-project/pagurus/e2e/testbed"
	"github.com/pagurus-project/pagurus/e2e/workload/verdict"
)

const (
	memory  = "256MiB"
	threads = "4"

	// verdictPatience is for a program that checks all of its memory.
	verdictPatience = time.Minute
)

// route is where the program goes, from host-a on.
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

	step(out, fmt.Sprintf("Starting a program on host-a: %s of memory, changed and checked by %s threads", memory, threads))
	p, err := bed.Start(ctx, "host-a", "$BIN/workload", "memory", "-size", memory, "-threads", threads, "-churn", "-ask", "$ASK")
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "  it is process %d\n", p.PID)

	for _, to := range route {
		step(out, fmt.Sprintf("migratectl move %d --from %s --to %s", p.PID, p.Host, to))
		move := bed.Command(ctx, "move", fmt.Sprint(p.PID), "--from", p.Host, "--to", to)
		move.Stdout, move.Stderr = out, os.Stderr
		// Ctrl-C reaches migratectl as well, which cancels the move and says so.
		move.Cancel = func() error { return nil }
		if err := move.Run(); err != nil {
			return fmt.Errorf("moving process %d from %s to %s: %w", p.PID, p.Host, to, err)
		}
		p.Host = to
	}

	step(out, "Asking the program what it has noticed")
	asking, cancel := context.WithTimeout(ctx, verdictPatience)
	defer cancel()
	v, err := p.Verdict(asking)
	if err != nil {
		return err
	}
	return judge(out, v)
}

// step announces what comes next.
func step(out io.Writer, what string) { fmt.Fprintf(out, "\n» %s\n", what) }

// judge tells what the program says of itself.
func judge(out io.Writer, v verdict.Verdict) error {
	var longest int64
	for _, t := range v.Threads {
		longest = max(longest, t.LongestPauseNS)
	}
	fmt.Fprintf(out, "  process %d runs on %s; it has written %d pages and checked all %d of them\n", v.PID, v.Host, v.Counts["writes"], v.Counts["verified"])
	fmt.Fprintf(out, "  the longest that one of its threads has noticed standing still: %v\n", time.Duration(longest).Round(100*time.Microsecond))
	if !v.OK {
		return fmt.Errorf("the program has found %d problems: %s", len(v.Problems)+v.Unlisted, strings.Join(v.Problems, "; "))
	}
	fmt.Fprintln(out, "  it has found nothing wrong")
	return nil
}
