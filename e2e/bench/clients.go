package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/e2e/testbed"
)

// crowds are how many clients a server has. Few of them ask, about once a millisecond; the
// connections of the others are there.
var crowds = []int{1, 100, 1000}

const asking = 2

// service is the address at which they find the server.
var service = netip.MustParsePrefix("10.77.0.200/24")

// A stall is what clients have noticed of a move.
type stall struct {
	downtime, longest time.Duration
	phases            map[string]float64
	again             int // segments that clients have sent twice
}

func (s stall) more() time.Duration { return s.longest - s.downtime }

// clients prints what clients notice.
func clients(ctx context.Context, bed *testbed.Bed, out io.Writer, moves int) error {
	if err := bed.Command(ctx, "address", "add", service.String(), "--host", "host-a").Run(); err != nil {
		return err
	}
	fmt.Fprintf(out, "\nHow long a client waits for an answer beyond the downtime, over %d moves of a server; %d of its clients ask once a millisecond.\n\n", moves, asking)
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(t, "clients\tdowntime (median)\t%s\tbeyond (median)\tbeyond (worst)\tsent again\t\n", strings.Join(phases, "\t"))
	for _, n := range crowds {
		all, err := stalls(ctx, bed, n, moves)
		if err != nil {
			return fmt.Errorf("%d clients: %w", n, err)
		}
		again := 0
		for _, s := range all {
			again += s.again
		}
		ms := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
		slices.SortFunc(all, func(a, b stall) int { return cmp.Compare(a.downtime, b.downtime) })
		middle := all[len(all)/2]
		slices.SortFunc(all, func(a, b stall) int { return cmp.Compare(a.more(), b.more()) })
		fmt.Fprintf(t, "%d\t%.1f\t", n, ms(middle.downtime))
		for _, name := range phases {
			fmt.Fprintf(t, "%.1f\t", middle.phases[name])
		}
		fmt.Fprintf(t, "%.1f\t%.1f\t%d\t\n", ms(all[len(all)/2].more()), ms(all[len(all)-1].more()), again)
	}
	return errors.Join(t.Flush(), bed.Command(ctx, "address", "rm", service.Addr().String()).Run())
}

// stalls moves a server with so many clients there and back.
func stalls(ctx context.Context, bed *testbed.Bed, n, moves int) (all []stall, err error) {
	at := netip.AddrPortFrom(service.Addr(), 7400)
	p, err := bed.Start(ctx, "host-a", "sh", "-c", `ulimit -n 4096 && exec "$@"`, "sh", "$BIN/workload", "memory", "-size", "16MiB", "-echo", at.String(), "-ask", "$ASK")
	if err != nil {
		return nil, err
	}
	defer func() { _ = p.End(context.WithoutCancel(ctx), unix.SIGKILL) }()
	crowd, err := bed.DialAll(ctx, "client", at, n, testbed.Line)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, crowd.Close()) }()
	loud := crowd[:min(asking, n)]
	again := 0
	for i := range moves {
		to := []string{"host-b", "host-a"}[i%2]
		var r testbed.Result
		seen := loud.During(func() { r, err = bed.Move(ctx, p, to) })
		if err = errors.Join(append(seen.Errors, err)...); err == nil && r.Code != 0 {
			err = errors.New(r.Stderr)
		}
		if err != nil {
			return nil, err
		}
		s := stall{downtime: time.Duration(r.DowntimeMS * float64(time.Millisecond)), longest: seen.Longest, phases: r.PhasesMS, again: -again}
		again = 0
		for _, c := range loud {
			sent, err := c.SentAgain()
			if err != nil {
				return nil, err
			}
			again += sent
		}
		s.again += again
		all = append(all, s)
	}
	// The address is where the process is, and is to be where the next one starts.
	if p.Host != "host-a" {
		if _, err = bed.Move(ctx, p, "host-a"); err != nil {
			return nil, err
		}
	}
	return all, nil
}
