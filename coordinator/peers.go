package coordinator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/pagurus-project/pagurus/coordinator/logline"
	"github.com/pagurus-project/pagurus/coordinator/member"
)

// A coordinator that comes back knows the other coordinators by its
// configuration. The agents would learn of it within seconds, and it of them;
// until then it would lead without knowing a single host. So it remembers
// where all members gossip, in a file of its data directory. The file is a
// hint, and to lose it costs those seconds.

func (s *Server) peersFile() string { return filepath.Join(s.config.DataDir, "peers.json") }

// peersInterval bounds how often the file is written.
const peersInterval = 200 * time.Millisecond

// recall reads where members were, nothing if that is not known.
func (s *Server) recall() []string {
	content, err := os.ReadFile(s.peersFile())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	var peers []string
	if err == nil {
		err = json.Unmarshal(content, &peers)
	}
	if err != nil {
		s.logger.Warn("not recalling members", logline.KeyError, err)
	}
	return peers
}

// remember keeps the file up to date until ctx ends.
func (s *Server) remember(ctx context.Context) {
	var last []string
	for {
		changed := s.group.Changed()
		var peers []string
		for _, m := range s.group.Members() {
			if m.Status == member.Alive && m.Address != s.group.Address() {
				peers = append(peers, m.Address.String())
			}
		}
		// Alone, it may be the one that was lost: what it knew is still the
		// best guess.
		if len(peers) > 0 && !slices.Equal(peers, last) {
			if err := s.writePeers(peers); err != nil {
				s.logger.Warn("not remembering members", logline.KeyError, err)
			} else {
				last = peers
			}
		}
		if !await(ctx, nil, peersInterval) {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

func (s *Server) writePeers(peers []string) error {
	content, err := json.Marshal(peers)
	if err != nil {
		return err
	}
	// Replaced in one step, so that a reader never sees half of it.
	temporary := s.peersFile() + ".new"
	if err := os.WriteFile(temporary, content, 0o600); err != nil {
		return fmt.Errorf("writing the members: %w", err)
	}
	return os.Rename(temporary, s.peersFile())
}
