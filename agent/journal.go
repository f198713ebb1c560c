package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate"
)

// The journal is a directory with one file for each session:
//
//	STATE_DIR/agent.lock                    held by the agent that runs
//	STATE_DIR/migrations/ID-source.json     an entry
//	STATE_DIR/migrations/ID-target.json
//	STATE_DIR/inspections/ID.json           a plan of the engine
//	STATE_DIR/addresses.json                service addresses: see serviceAddresses
//	STATE_DIR/hold                          of tests: see hold
//
// An entry is replaced by rename, so that it is the old one or the new one
// whenever the agent dies. It is not synced: what it undoes dies with the
// boot, and entries of another boot are thrown away.
type journal struct {
	dir   string
	looks string // where the inspections are
	boot  string
	lock  *os.File
}

// A phase is how far a session has come. It says what an agent that starts
// again has to do with it.
type phase string

const (
	phaseRunning   phase = "running"  // source: it may give up by itself, and does when it starts again
	phasePromised  phase = "promised" // source: only the log decides
	phaseReserved  phase = "reserved" // destination: nothing depends on the shell yet
	phasePrepared  phase = "prepared" // destination: only the log decides
	phaseOver      phase = "over"     // Outcome says how
	journalVersion       = 1
)

// An entry is what has to be remembered of a session.
type entry struct {
	Version   int             `json:"version"`
	Boot      string          `json:"boot"`
	Migration string          `json:"migration"`
	Epoch     uint64          `json:"epoch"`
	Side      migrate.Side    `json:"side"`
	PIDs      []int           `json:"pids"` // that nobody else may migrate meanwhile
	Peer      string          `json:"peer"` // the other host
	Phase     phase           `json:"phase"`
	Plan      json.RawMessage `json:"plan,omitempty"`      // of the engine
	Addresses []netip.Prefix  `json:"addresses,omitempty"` // service addresses that go along

	// Of a destination that is prepared: CLOCK_BOOTTIME then, in nanoseconds.
	PreparedAt int64 `json:"prepared_at,omitempty"`

	// Of a source that has promised, or is over.
	Measured migrate.Measured `json:"measured"`

	// Of one that is over.
	Outcome    migrate.Outcome    `json:"outcome,omitempty"`
	Reason     string             `json:"reason,omitempty"`
	Blockers   []migrate.Finding  `json:"blockers,omitempty"`
	Rehearsed  bool               `json:"rehearsed,omitempty"`
	Lost       string             `json:"lost,omitempty"`
	DowntimeMS float64            `json:"downtime_ms,omitempty"`
	PhasesMS   map[string]float64 `json:"phases_ms,omitempty"`
	Announced  bool               `json:"announced,omitempty"` // the log had a decision by then
}

// idPattern keeps the names of migrations usable as file names.
var idPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$`)

// openJournal takes the state directory over. It fails while another agent has
// it.
func openJournal(stateDir string) (_ *journal, err error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, err
	}
	j := &journal{dir: filepath.Join(stateDir, "migrations"), looks: filepath.Join(stateDir, "inspections"), boot: strings.TrimSpace(string(boot))}
	for _, dir := range []string{j.dir, j.looks} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("making the journal: %w", err)
		}
	}
	j.lock, err = os.OpenFile(filepath.Join(stateDir, "agent.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locking the journal: %w", err)
	}
	if err := unix.Flock(int(j.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		j.lock.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("another agent has its journal in %s: give each its own state_dir", stateDir)
		}
		return nil, fmt.Errorf("locking %s: %w", j.lock.Name(), err)
	}
	return j, nil
}

func (j *journal) close() error { return j.lock.Close() }

func (j *journal) path(e *entry) string {
	return filepath.Join(j.dir, e.Migration+"-"+string(e.Side)+".json")
}

// write keeps an entry.
func (j *journal) write(e *entry) error {
	e.Version, e.Boot = journalVersion, j.boot
	return replace(j.path(e), e)
}

// remove forgets an entry.
func (j *journal) remove(e *entry) error { return forget(j.path(e)) }

// replace writes a file of the journal.
func replace(path string, content any) error {
	data, err := json.Marshal(content)
	if err != nil {
		return fmt.Errorf("writing the journal: %w", err)
	}
	temporary := path + newSuffix
	if err := os.WriteFile(temporary, data, 0o600); err != nil {
		return fmt.Errorf("writing the journal: %w", err)
	}
	if err := os.Rename(temporary, path); err != nil {
		return fmt.Errorf("writing the journal: %w", err)
	}
	return nil
}

const newSuffix = ".new"

func forget(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing from the journal: %w", err)
	}
	return nil
}

// files reads all files of a directory of the journal, by their paths.
func files(dir string) (map[string][]byte, error) {
	listed, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("reading the journal: %w", err)
	}
	all := make(map[string][]byte, len(listed))
	for _, f := range listed {
		path := filepath.Join(dir, f.Name())
		if strings.HasSuffix(path, newSuffix) { // the agent died before it counted
			if err := forget(path); err != nil {
				return nil, err
			}
			continue
		}
		if all[path], err = os.ReadFile(path); err != nil {
			return nil, fmt.Errorf("reading the journal: %w", err)
		}
	}
	return all, nil
}

// read returns all entries of this boot. One that cannot be read is an error:
// there may be a frozen process behind it.
func (j *journal) read() ([]entry, error) {
	found, err := files(j.dir)
	if err != nil {
		return nil, err
	}
	var entries []entry
	for path, data := range found {
		var e entry
		if err := json.Unmarshal(data, &e); err != nil {
			return nil, fmt.Errorf("reading the journal: %s: %w", path, err)
		}
		switch {
		case e.Boot != j.boot:
			if err := forget(path); err != nil {
				return nil, err
			}
		case e.Version != journalVersion || !idPattern.MatchString(e.Migration) || j.path(&e) != path || !e.Phase.of(e.Side):
			return nil, fmt.Errorf("reading the journal: %s is not an entry of version %d", path, journalVersion)
		default:
			entries = append(entries, e)
		}
	}
	return entries, nil
}

// of reports whether a session of that side can be in phase p.
func (p phase) of(side migrate.Side) bool {
	switch p {
	case phaseRunning, phasePromised:
		return side == migrate.SideSource
	case phaseReserved, phasePrepared:
		return side == migrate.SideTarget
	case phaseOver:
		return side == migrate.SideSource || side == migrate.SideTarget
	}
	return false
}

// An inspectionEntry is what has to be remembered of a look at a process.
type inspectionEntry struct {
	Boot string          `json:"boot"`
	Plan json.RawMessage `json:"plan"`
}

func (j *journal) inspection(id string) string { return filepath.Join(j.looks, id+".json") }

func (j *journal) writeInspection(id string, plan json.RawMessage) error {
	return replace(j.inspection(id), inspectionEntry{Boot: j.boot, Plan: plan})
}

func (j *journal) removeInspection(id string) error { return forget(j.inspection(id)) }

// readInspections returns the plans of inspections of this boot that were not
// removed, by their ids.
func (j *journal) readInspections() (map[string]json.RawMessage, error) {
	found, err := files(j.looks)
	if err != nil {
		return nil, err
	}
	plans := make(map[string]json.RawMessage)
	for path, data := range found {
		var e inspectionEntry
		if err := json.Unmarshal(data, &e); err != nil {
			return nil, fmt.Errorf("reading the journal: %s: %w", path, err)
		}
		if e.Boot != j.boot {
			if err := forget(path); err != nil {
				return nil, err
			}
			continue
		}
		plans[strings.TrimSuffix(filepath.Base(path), ".json")] = e.Plan
	}
	return plans, nil
}
