// Bench measures moves in a lab and prints how long the process stands still,
// by phase, over its size, and what clients notice. "make bench" runs it; the page stream's throughput
// against memory copy and raw TCP is in the benchmarks of package pageserver.
//
// Each size is moved several times; the run with the median downtime is shown.
// Nothing is judged: what a number should be depends on the machine.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"text/tabwriter"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/e2e/lab"
	"github.com/pagurus-project/pagurus/e2e/testbed"
	"github.com/pagurus-project/pagurus/migrate"
)

// sizes of memory, in MiB, and what is done to it.
var (
	sizes = []int{64, 256, 1024, 4096}
	loads = []load{{"idle", 1}, {"writing", 20000}}
)

// A load is how many pages the program writes in a second; it cannot be 0.
type load struct {
	name string
	rate int
}

func main() {
	lab.Main() // a lab's hosts are this program run again
	moves := flag.Int("moves", 5, "how often each program is moved")
	largest := flag.Int("largest", 4096, "largest size, in MiB; 0: clients alone")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	if err := run(ctx, os.Stdout, *moves, *largest); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// phases that add up to the downtime, in the order in which they are passed.
var phases = []string{
	migrate.PhaseStop, migrate.PhaseDump, migrate.PhaseTransfer, migrate.PhaseRestore, migrate.PhaseDecide, migrate.PhaseResume,
}

func run(ctx context.Context, out io.Writer, moves, largest int) (err error) {
	bed, err := testbed.Up(ctx, lab.Options{Hosts: 3})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bed.Down(context.WithoutCancel(ctx))) }()
	fmt.Fprintf(out, "Times in milliseconds, memory in MiB; the median of %d moves by downtime.\n\n", moves)
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(t, "size\tload\tdowntime\t%s\ttotal\trounds\tmemory\twire\tratio\tMiB/s\t\n", strings.Join(phases, "\t"))
	for _, size := range sizes {
		for _, load := range loads {
			if size > largest {
				continue
			}
			r, err := measure(ctx, bed, size, load, moves)
			if err != nil {
				return fmt.Errorf("%d MiB, %s: %w", size, load.name, err)
			}
			row(t, size, load, r)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	return clients(ctx, bed, out, 4*moves)
}

func row(t io.Writer, size int, load load, r migrate.Report) {
	const mib = 1 << 20
	fmt.Fprintf(t, "%d\t%s\t%.1f\t", size, load.name, r.DowntimeMS)
	for _, name := range phases {
		fmt.Fprintf(t, "%.1f\t", r.PhasesMS[name])
	}
	bytes, wire := float64(r.Bytes)/mib, float64(r.WireBytes)/mib
	fmt.Fprintf(t, "%.0f\t%d\t%.0f\t%.0f\t%.2f\t%.0f\t\n",
		r.TotalMS, len(r.Rounds), bytes, wire, bytes/wire, 1000*bytes/r.PhasesMS[migrate.PhasePrecopy])
}

// measure moves a program there and back and returns the median.
func measure(ctx context.Context, bed *testbed.Bed, size int, load load, moves int) (migrate.Report, error) {
	p, err := bed.Start(ctx, "host-a", "$BIN/workload", "memory", "-threads", "2",
		"-size", fmt.Sprintf("%dMiB", size), "-rate", fmt.Sprint(load.rate), "-ask", "$ASK")
	if err != nil {
		return migrate.Report{}, err
	}
	defer func() { _ = p.End(context.WithoutCancel(ctx), unix.SIGKILL) }()
	var reports []migrate.Report
	for range moves {
		to := map[string]string{"host-a": "host-b", "host-b": "host-a"}[p.Host]
		r, err := bed.Move(ctx, p, to)
		if err != nil {
			return r.Report, err
		}
		if r.Code != 0 {
			return r.Report, errors.New(r.Stderr)
		}
		reports = append(reports, r.Report)
	}
	slices.SortFunc(reports, func(a, b migrate.Report) int { return cmp.Compare(a.DowntimeMS, b.DowntimeMS) })
	return reports[len(reports)/2], nil
}
