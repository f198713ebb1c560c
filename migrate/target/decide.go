package target

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/migrate/resource"
	"github.com/pagurus-project/pagurus/migrate/wire"
)

// Ran is what came of a COMMIT.
type Ran struct {
	// NeverRan attests that no thread of the shell ever executed an instruction
	// of the program, and never will.
	NeverRan bool
	Detail   string
	// Downtime is this host's part: from the arrival of the state to the last
	// thread resumed. PhasesMS are its parts, in milliseconds by the keys of
	// package migrate. After a Recover they are not known.
	Downtime time.Duration
	PhasesMS map[string]float64
}

// Commit lets the process run. It may be called again after an error, and then
// says the same. The addresses that go along are the host's by now.
func (s *Shell) Commit(ctx context.Context) (Ran, error) {
	if s.gone {
		return s.cleared(), nil
	}
	if !s.plan.Prepared {
		return Ran{}, errors.New("the shell is not prepared")
	}
	start := time.Now()
	pids, err := s.group.Processes()
	if err != nil {
		return Ran{}, err
	}
	if len(pids) == 0 {
		// Somebody killed it. Unless the plan says otherwise it was never thawed.
		s.gone = true
		return s.cleared(), nil
	}
	if !s.plan.Committed {
		s.plan.Committed = true
		if err := s.save(); err != nil {
			s.plan.Committed = false
			return Ran{}, err
		}
	}
	lost, err := s.activate()
	if err == nil {
		err = s.group.Thaw()
	}
	if err != nil {
		return Ran{}, fmt.Errorf("resuming the process: %w", err)
	}
	s.tellRunning()
	s.ranOnce()
	now := time.Now()
	r := Ran{Detail: lostText(append(lost, s.arrival.Remember()...))}
	s.tidy()
	if !s.preparedAt.IsZero() {
		r.Downtime = now.Sub(s.stateReceived)
		r.PhasesMS = map[string]float64{
			migrate.PhaseRestore: migrate.Milliseconds(s.preparedAt.Sub(s.stateReceived)),
			migrate.PhaseDecide:  migrate.Milliseconds(start.Sub(s.preparedAt)),
			migrate.PhaseResume:  migrate.Milliseconds(now.Sub(start)),
		}
	}
	return r, nil
}

// activate lets the sockets live, as long as the shell stands still: once it runs
// that has been done, and they are the program's. What is lost with them is told, but no
// reason for it not to run.
func (s *Shell) activate() (lost []error, err error) {
	frozen, err := s.group.Frozen()
	if err != nil || !frozen {
		return nil, err
	}
	return append(s.arrival.Arrive(), s.takeQueues()...), nil
}

func lostText(lost []error) string {
	if len(lost) == 0 {
		return ""
	}
	return "lost with its sockets: " + strings.ReplaceAll(errors.Join(lost...).Error(), "\n", "; ")
}

// cleared says what is known of a shell that is gone, of which nothing is left.
func (s *Shell) cleared() Ran {
	r := s.attest()
	if err := s.clear(); err != nil {
		r.Detail += "; " + err.Error()
	}
	return r
}

// clear takes away what stood ready, if it is still there.
func (s *Shell) clear() error {
	err := s.arrival.Discard()
	s.tidy()
	return err
}

// tidy takes away what was needed until the decision: late segments soon.
func (s *Shell) tidy() {
	resource.RemoveArrival(s.arrivalFile())
	if s.filler != nil {
		_ = s.filler.Close() // that was all
		s.filler = nil
	}
	if s.plan.Addresses {
		s.host.answerStrays(s.strayName())
	}
}

// arrivalFile keeps what has to be known of sockets until they live.
func (s *Shell) arrivalFile() string { return filepath.Join(s.host.state, s.config.Migration) }

// tellRunning tells the source, which may hold packets. It learns it by the log as well.
func (s *Shell) tellRunning() {
	if s.conn == nil {
		return
	}
	_ = s.conn.SetWriteDeadline(time.Now().Add(time.Second))
	_ = wire.WriteReply(s.conn, wire.Reply{Kind: wire.Running})
}

func (s *Shell) ranOnce() {
	if s.ran == nil {
		return
	}
	select {
	case <-s.ran:
	default:
		close(s.ran)
	}
}

// attest says what is known of a shell that is gone.
func (s *Shell) attest() Ran {
	if s.plan.Committed {
		return Ran{Detail: "it has ended since"}
	}
	return Ran{NeverRan: true, Detail: "the shell is gone"}
}

// Release removes the shell, in any state before Commit. It may be called
// again after an error.
func (s *Shell) Release(ctx context.Context) error {
	if s.plan.Committed {
		return errors.New("the process runs here: it cannot be removed")
	}
	errs := []error{s.closeOurs(), s.kill(ctx), s.clear()}
	s.gone = true
	s.ranOnce()
	if s.conn != nil {
		errs = append(errs, ignoreClosed(s.conn.Close()))
		s.signals.Wait()
	}
	return errors.Join(errs...)
}

// kill kills what is in the group and removes it.
func (s *Shell) kill(ctx context.Context) error {
	pids, err := s.group.Processes()
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("killing process %d of the shell: %w", pid, err)
		}
	}
	if err := s.group.Remove(ctx); err != nil {
		return err
	}
	s.awaitForgotten(ctx)
	return nil
}

// forgetTimeout is how long the host's first process may take to ask for the
// status of its children.
const forgetTimeout = time.Second

// awaitForgotten waits until the ids of the processes, which have ended, are free
// again: the next shell may want them.
func (s *Shell) awaitForgotten(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, forgetTimeout)
	defer cancel()
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for slices.ContainsFunc(s.plan.PIDs, s.group.Was) {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
