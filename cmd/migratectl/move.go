package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/coordinator/api"
	"github.com/pagurus-project/pagurus/migrate"
)

// settlePatience is how long a move that is decided is watched for both hosts
// to have cleaned up. One of them may be lost for good.
const settlePatience = 10 * time.Second

func newMove(s *settings) *cobra.Command {
	var (
		req       api.MoveRequest
		o         = &req.Options
		bandwidth bitRate
		detach    bool
	)
	cmd := &cobra.Command{
		Use:   "move PID --to HOST",
		Short: "Move a running process to another host",
		Long: `Moves a process to another host while it runs: its memory is copied in rounds,
each of what was written during the one before; then it is stopped, the rest
crosses, and it goes on at the destination.

Until the destination can run the process nothing is lost if anything fails: it
runs on where it was, and the exit code is 3. What could not move at all is found
before anything is touched: exit code 2, with everything that stands in the way.

Ctrl-C cancels the move and waits for what becomes of it. A second Ctrl-C leaves
it to the coordinator: exit code 4, and "migratectl show ID" tells how it ended.`,
		Example: `  migratectl move 4711 --to host-b
  migratectl move 4711 --to host-b --rehearse          what would it cost?
  migratectl move 4711 --to host-b --max-downtime 20ms --strict
  migratectl move 4711 --to host-b --bandwidth 1Gbit
  migratectl move 4711 --to host-b --with-address 10.0.0.100
  id=$(migratectl move 4711 --to host-b --detach); migratectl watch $id`,
		Args: one("PID"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if req.PID, err = parsePID(args[0]); err != nil {
				return err
			}
			o.BandwidthBytes = uint64(bandwidth)
			if o.MaxDowntime <= 0 || o.MaxRounds <= 0 {
				return errors.New("--max-downtime and --max-rounds are above 0: a process that moves stands still for a moment")
			}
			if err := o.Validate(); err != nil {
				return err
			}
			client, target, err := s.client(cmd.Context())
			if err != nil {
				return err
			}
			defer client.Close()
			if req.From, err = target.source(req.From); err != nil {
				return err
			}
			m := &mover{client: client, out: s.output(cmd), stderr: cmd.ErrOrStderr()}
			if detach {
				return m.detach(cmd.Context(), req)
			}
			return m.move(cmd.Context(), req)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&req.To, "to", "", "the `HOST` to move to")
	addFrom(cmd, &req.From)
	flags.DurationVar(&o.MaxDowntime, "max-downtime", migrate.DefaultMaxDowntime, "stop the process when the rest is estimated to take no longer than this")
	flags.BoolVar(&o.Strict, "strict", false, "give up rather than stand still for longer than --max-downtime")
	flags.IntVar(&o.MaxRounds, "max-rounds", migrate.DefaultMaxRounds, "stop the process after so many rounds at the latest")
	flags.Var(&bandwidth, "bandwidth", "limit of what crosses the network, as 500Mbit or 1Gbit")
	flags.StringVar((*string)(&o.Compress), "compress", string(migrate.CompressAuto), "`CODEC`: auto, none, s2 or zstd")
	flags.BoolVar(&o.Rehearse, "rehearse", false, "do everything but the last step: the process stays, the report says what a move would cost")
	flags.BoolVar(&o.Verify, "verify", false, "compare all of the memory on both sides while the process stands still (slow)")
	flags.BoolVar(&o.AllowDegraded, "allow-degraded", false, "accept what cannot be restored as it was")
	addWithAddress(cmd, o)
	flags.BoolVar(&detach, "detach", false, "do not wait: print the migration's id and end")
	_ = cmd.MarkFlagRequired("to")
	return cmd
}

// addWithAddress adds the flag that names service addresses.
func addWithAddress(cmd *cobra.Command, o *migrate.Options) {
	cmd.Flags().Var((*addrList)(&o.WithAddresses), "with-address", "a service `ADDRESS` that is to go along, though no socket is bound to it; may be repeated")
}

// An addrList is a flag that may be repeated.
type addrList []netip.Addr

func (l *addrList) Type() string { return "ADDRESS" }

func (l *addrList) String() string {
	var texts []string
	for _, a := range *l {
		texts = append(texts, a.String())
	}
	return strings.Join(texts, ",")
}

// Set takes one address, or several with commas between them.
func (l *addrList) Set(text string) error {
	for one := range strings.SplitSeq(text, ",") {
		a, err := netip.ParseAddr(one)
		if err != nil {
			return fmt.Errorf("%q is not an address, as 10.0.0.100 is one", one)
		}
		if !slices.Contains(*l, a) {
			*l = append(*l, a)
		}
	}
	return nil
}

// parsePID reads the PID of a verb's argument.
func parsePID(arg string) (int, error) {
	pid, err := strconv.ParseInt(arg, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("%q is not a PID: it is a number from 1 on, as \"migratectl ps\" shows it", arg)
	}
	return int(pid), nil // that no process has such a number is the agent's word
}

// A mover asks for one migration and stays with it.
type mover struct {
	client *api.Client
	out    output
	stderr io.Writer
}

// create asks for the migration. Even without an answer it may exist.
func (m *mover) create(ctx context.Context, req api.MoveRequest) (migrate.Report, error) {
	r, err := m.client.Move(ctx, req)
	if errors.Is(err, api.ErrNoAnswer) || errors.Is(err, context.Canceled) {
		err = &hintError{err, "the request may have arrived all the same: look at \"migratectl migrations\" before asking again"}
	}
	return r, refused(err)
}

func (m *mover) detach(ctx context.Context, req api.MoveRequest) error {
	r, err := m.create(ctx, req)
	if err != nil {
		return err
	}
	return m.out.write(r, func(w io.Writer) { fmt.Fprintln(w, r.ID) })
}

// move stays until the migration has ended. Signals mean something else here
// than in other verbs: the first one cancels the migration.
func (m *mover) move(ctx context.Context, req api.MoveRequest) error {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM)
	defer signal.Stop(signals)
	r, err := m.create(ctx, req)
	if err != nil {
		return err
	}
	// The verb's context has ended when the first signal is here.
	r, err = m.follow(context.WithoutCancel(ctx), r, signals)
	if err != nil {
		return err
	}
	if err := m.out.write(r, func(w io.Writer) { summarize(w, r) }); err != nil {
		return err
	}
	return outcome(r)
}

// follow watches a migration until it is settled, or until that takes too long
// after it has ended.
func (m *mover) follow(ctx context.Context, r migrate.Report, signals <-chan os.Signal) (migrate.Report, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	d := newDisplay(m.stderr, m.out.json)
	defer d.end()
	d.show(r)
	reports, failed := m.watch(ctx, r.ID)
	var late <-chan time.Time
	var cancelled chan string
	for !r.Settled {
		select {
		case r = <-reports:
			d.show(r)
			if r.State.Final() && late == nil {
				late = time.After(settlePatience)
			}
		case err := <-failed:
			return r, m.lost(r, err)
		case <-late:
			return r, nil
		case <-signals:
			if cancelled != nil {
				return r, &exitError{exitUndecided, fmt.Errorf("migration %s is left to the coordinator: ask \"migratectl show %s\"", r.ID, r.ID)}
			}
			d.say(fmt.Sprintf("cancelling migration %s; Ctrl-C once more leaves it to the coordinator", r.ID))
			cancelled = make(chan string, 1)
			go m.cancel(ctx, r.ID, cancelled)
		case line := <-cancelled:
			d.say(line)
		}
	}
	return r, nil
}

// cancel asks for an abort and tells what came of it.
func (m *mover) cancel(ctx context.Context, id string, told chan<- string) {
	_, err := m.client.Cancel(ctx, id)
	problem, ok := errors.AsType[*api.Error](err)
	switch {
	case err == nil:
		told <- "cancelled, the process goes on where it was"
	case ok && problem.Code == api.CodeTooLate:
		told <- "too late to cancel: " + problem.Error()
	default:
		told <- "cancelling failed: " + err.Error()
	}
}

// watch passes on what the coordinator tells of a migration.
func (m *mover) watch(ctx context.Context, id string) (<-chan migrate.Report, <-chan error) {
	reports, failed := make(chan migrate.Report), make(chan error, 1)
	go func() {
		for r, err := range m.client.Watch(ctx, id) {
			if err != nil {
				failed <- err
				return
			}
			select {
			case reports <- r:
			case <-ctx.Done():
				return
			}
		}
	}()
	return reports, failed
}

// lost is a migration that is under way and cannot be followed any more.
func (m *mover) lost(r migrate.Report, err error) error {
	return &exitError{exitUndecided, fmt.Errorf("lost sight of migration %s, last seen %s: %w; ask \"migratectl show %s\"", r.ID, r.State, err, r.ID)}
}
