package scheduler

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/pagurus-project/pagurus/coordinator/logline"
	"github.com/pagurus-project/pagurus/migrate"
	migratev1 "github.com/pagurus-project/pagurus/proto/migrate/v1"
)

// tokenBytes is the length of what the source presents on the page connection.
const tokenBytes = 32

// A look is the question of preflight: can this process move there?
type look struct {
	ref     *migratev1.Ref // nil for a mere check, which reserves nothing
	pid     int
	from    string
	to      string // may be empty in a check
	options migrate.Options
	token   []byte
}

// found is its answer.
type found struct {
	tree      []migrate.Process
	blockers  []migrate.Finding
	warnings  []migrate.Finding
	addresses []netip.Prefix // that go along
	// reserved says that the destination may have made a reservation.
	reserved    bool
	pageAddress string
}

// preflight looks at both sides and writes down what it found.
func (w *worker) preflight(ctx context.Context, r migrate.Record) error {
	w.update(func(a *migrate.Attempt) { a.Preflight = true })
	began := time.Now()
	token := make([]byte, tokenBytes)
	_, _ = rand.Read(token) // never fails, see its documentation
	f, err := w.s.look(ctx, look{
		ref: w.ref(r), pid: r.PID, from: r.From, to: r.To, options: r.Options, token: token,
	})
	if err != nil {
		return err
	}
	w.reservation = &reservation{pageAddress: f.pageAddress, token: token}
	event := migrate.PreflightDone{
		Epoch: w.epoch, Command: f.command(r.PID), Blockers: f.blockers, Warnings: f.warnings,
		PhasesMS:  map[string]float64{migrate.PhasePreflight: migrate.Milliseconds(time.Since(began))},
		Addresses: f.addresses, Reserved: f.reserved, At: now(),
	}
	w.logger.Info("preflight", "blockers", codesOf(f.blockers), "warnings", codesOf(f.warnings), logline.KeyEpoch, w.epoch)
	return w.write(ctx, event)
}

func codesOf(all []migrate.Finding) []migrate.Code {
	list := make([]migrate.Code, len(all))
	for i := range all {
		list[i] = all[i].Code
	}
	return list
}

func (f found) command(pid int) string {
	for _, p := range f.tree {
		if p.PID == pid {
			return p.Command
		}
	}
	return ""
}

// look collects the blockers of both sides, as many as can be known. It fails
// only if ctx ends.
func (s *Scheduler) look(ctx context.Context, l look) (found, error) {
	limited, cancel := context.WithTimeout(ctx, s.timing.Preflight)
	defer cancel()
	var f found
	if l.from == l.to {
		f.block(migrate.CodeSameHost, "name another host", "process %d is on %s already", l.pid, l.to)
	}
	inv := s.lookAtSource(limited, l, &f)
	if l.to != "" && l.from != l.to {
		s.lookAtTarget(limited, l, inv, &f)
	}
	return f, ctx.Err()
}

func (f *found) block(code migrate.Code, hint, format string, args ...any) {
	f.blockers = append(f.blockers, migrate.Findingf(code, hint, format, args...))
}

// An inventory is what one agent has said and the other is to be told.
type inventory struct {
	encoded []byte    // nil: there is none
	read    time.Time // when its clocks were, but for the time on the way
}

func (s *Scheduler) lookAtSource(ctx context.Context, l look, f *found) (inv inventory) {
	var service []string
	all, _ := s.log.Addresses()
	for _, a := range all {
		if a.Host == l.from && !a.Leaving {
			service = append(service, a.Prefix.String())
		}
	}
	err := s.reach(ctx, l.from, func(ctx context.Context, agent migratev1.AgentClient) error {
		resp, err := agent.Inspect(ctx, &migratev1.InspectRequest{
			Ref: l.ref, Pid: int32(l.pid), Options: optionsToProto(l.options), ServiceAddresses: service,
		})
		if err != nil {
			return err
		}
		if f.addresses, err = prefixes(resp.GetAddresses()); err != nil {
			return err
		}
		f.tree = Processes(resp.GetTree(), l.from)
		f.blockers = append(f.blockers, findings(resp.GetBlockers())...)
		f.warnings = append(f.warnings, findings(resp.GetWarnings())...)
		inv = inventory{resp.GetInventory(), time.Now().Add(-time.Duration(resp.GetInventoryAgeNs()))}
		return nil
	})
	switch {
	case err == nil:
	case unreachable(err):
		f.unreachable(l.from, err)
	default:
		f.block(migrate.CodeProcessState, "see the agent's log on "+l.from,
			"%s could not look at process %d: %s", l.from, l.pid, message(err))
	}
	return inv
}

// lookAtTarget asks for a reservation if nothing stands in the way so far, and
// otherwise for what else would.
func (s *Scheduler) lookAtTarget(ctx context.Context, l look, inv inventory, f *found) {
	if inv.encoded == nil {
		// Nothing to compare it with; whether it is there can be told.
		if err := s.reach(ctx, l.to, func(ctx context.Context, agent migratev1.AgentClient) error {
			_, err := agent.Describe(ctx, &migratev1.DescribeRequest{})
			return err
		}); unreachable(err) {
			f.unreachable(l.to, err)
		}
		return
	}
	checkOnly := l.ref == nil || len(f.blockers) > 0
	err := s.reach(ctx, l.to, func(ctx context.Context, agent migratev1.AgentClient) error {
		// Until it is known that it was not made.
		f.reserved = !checkOnly
		resp, err := agent.Reserve(ctx, &migratev1.ReserveRequest{
			Ref: l.ref, SourceHost: l.from, Inventory: inv.encoded, Options: optionsToProto(l.options),
			Token: l.token, CheckOnly: checkOnly, InventoryAgeNs: time.Since(inv.read).Nanoseconds(),
		})
		if err != nil {
			return err
		}
		if len(resp.GetBlockers()) > 0 {
			f.reserved = false
		}
		f.pageAddress = resp.GetPageAddress()
		f.blockers = append(f.blockers, findings(resp.GetBlockers())...)
		f.warnings = append(f.warnings, findings(resp.GetWarnings())...)
		return nil
	})
	switch {
	case err == nil:
	case unreachable(err):
		f.unreachable(l.to, err)
	default:
		f.block(migrate.CodeReserve, "see the agent's log on "+l.to, "%s could not make a reservation: %s", l.to, message(err))
	}
}

// reach asks an agent, and for a while again if it does not answer: preflight
// should neither fail for one lost connection nor hang for a lost host.
func (s *Scheduler) reach(ctx context.Context, host string, call func(context.Context, migratev1.AgentClient) error) error {
	began := time.Now()
	for n := 0; ; n++ {
		err := s.ask(ctx, host, s.timing.Preflight, call)
		if err == nil || !transient(err) || errors.Is(err, ErrNoSuchHost) {
			return err
		}
		pause := s.timing.pause(n)
		if time.Since(began)+pause > s.timing.Reach || !sleep(ctx, pause) {
			return err
		}
	}
}

func prefixes(list []string) ([]netip.Prefix, error) {
	var all []netip.Prefix
	for _, text := range list {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errAnswer, err)
		}
		all = append(all, p)
	}
	return all, nil
}

func unreachable(err error) bool { return err != nil && transient(err) }

func (f *found) unreachable(host string, err error) {
	if errors.Is(err, ErrNoSuchHost) {
		f.block(migrate.CodeNoSuchHost, "see migratectl hosts", "%s: no agent of that name has joined", host)
		return
	}
	f.block(migrate.CodeHostDown, fmt.Sprintf("see that the agent on %s runs and can be reached", host),
		"the agent on %s does not answer: %s", host, message(err))
}

// Check answers whether a process could move, without a migration. With no
// destination only the source is looked at.
func (s *Scheduler) Check(ctx context.Context, pid int, from, to string, options migrate.Options) (migrate.Check, error) {
	f, err := s.look(ctx, look{pid: pid, from: from, to: to, options: options})
	if err != nil {
		return migrate.Check{}, err
	}
	said := slices.Contains(codesOf(f.blockers), migrate.CodeBusy) // by the agent
	if holder, ok := s.log.Holder(from, pid); ok && !said {
		f.blockers = append(f.blockers, migrate.Busy(holder.ID, from, pid))
	}
	return migrate.Check{
		Movable:  len(f.blockers) == 0,
		Blockers: append([]migrate.Finding{}, f.blockers...),
		Warnings: append([]migrate.Finding{}, f.warnings...),
		Tree:     append([]migrate.Process{}, f.tree...),
	}, nil
}
