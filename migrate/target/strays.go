package target

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/pagurus-project/pagurus/tcprepair/hold"
)

// Segments to addresses that come along can be late: the source has held them, and sends
// them on when it hears that the process runs here. Connections may have ended by then,
// and nobody is to be told that they are not known.

// strayFor is how long such segments are waited for: longer than it takes until the
// source sends them on, if nothing goes wrong.
const strayFor = 2 * time.Second

func (s *Shell) strayName() string { return StrayName(s.config.Migration) }

// StrayName is the name of a migration's rules for that (package hold).
func StrayName(migration string) string { return hold.NameOf(migration + " arriving") }

// dropStrays begins not to answer them. The addresses are not here yet.
func (s *Shell) dropStrays(along []netip.Prefix) error {
	if len(along) == 0 {
		return nil
	}
	var all []netip.Addr
	for _, p := range along {
		all = append(all, p.Addr())
	}
	if err := hold.DropStrays(s.strayName(), all); err != nil {
		return fmt.Errorf("preparing for late segments: %w", err)
	}
	return nil
}

// answerStrays ends that after a while, in the background. An agent that dies before it
// leaves it to who sweeps.
func (h *Host) answerStrays(name string) {
	h.background.Go(func() {
		select {
		case <-h.alive.Done():
		case <-time.After(strayFor):
		}
		_ = hold.Remove(name) // is swept otherwise
	})
}
