package replog

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/encoding/protodelim"

	"github.com/pagurus-project/pagurus/migrate"
	raftlogv1 "github.com/pagurus-project/pagurus/proto/raftlog/v1"
)

// fsm is the shell around the ledger that raft drives: decode, apply, store.
type fsm struct {
	keep    int
	changed func(migrate.Record, []migrate.Effect)

	mu     sync.RWMutex
	ledger *migrate.Ledger
}

var _ raft.FSM = (*fsm)(nil)

func newFSM(keep int, changed func(migrate.Record, []migrate.Effect)) *fsm {
	return &fsm{keep: keep, changed: changed, ledger: migrate.NewLedger(keep)}
}

// applied is what Apply returns through raft to whoever proposed the entry.
type applied struct {
	record migrate.Record
	err    error
}

// Apply is called by raft, one committed entry after the other. To go on past
// an entry that it cannot read would let this server hold another record than
// the others and give another answer on who runs a process, so it stops.
func (f *fsm) Apply(l *raft.Log) any {
	id, event, err := decodeEntry(l.Data)
	if err != nil {
		panic(fmt.Sprintf("entry %d of the replicated log: %v; install the newest release on this server", l.Index, err))
	}
	f.mu.Lock()
	record, effects, err := f.ledger.Apply(id, event)
	f.mu.Unlock()
	if err == nil {
		f.changed(record, effects)
	}
	return applied{record, err}
}

func (f *fsm) record(id string) (migrate.Record, bool) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.ledger.Record(id)
}

func (f *fsm) records() []migrate.Record {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.ledger.Records()
}

func (f *fsm) holder(host string, pid int) (migrate.Record, bool) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.ledger.Holder(host, pid)
}

const snapshotVersion = 1

// Snapshot takes the list of records; they are values that nobody writes to,
// so Persist may run beside further entries.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	return snapshot(f.records()), nil
}

type snapshot []migrate.Record

func (s snapshot) Persist(sink raft.SnapshotSink) error {
	if err := s.write(sink); err != nil {
		return errors.Join(fmt.Errorf("writing snapshot: %w", err), sink.Cancel())
	}
	return sink.Close()
}

func (s snapshot) Release() {}

func (s snapshot) write(w io.Writer) error {
	b := bufio.NewWriter(w)
	if _, err := protodelim.MarshalTo(b, &raftlogv1.SnapshotHeader{Version: snapshotVersion, Records: uint64(len(s))}); err != nil {
		return err
	}
	for _, r := range s {
		if _, err := protodelim.MarshalTo(b, recordToProto(r)); err != nil {
			return fmt.Errorf("record %s: %w", r.ID, err)
		}
	}
	return b.Flush()
}

// Restore replaces the ledger. Whoever watches records hears of each again.
func (f *fsm) Restore(source io.ReadCloser) error {
	defer source.Close()
	records, err := readSnapshot(bufio.NewReader(source))
	if err != nil {
		return fmt.Errorf("reading snapshot: %w", err)
	}
	ledger := migrate.NewLedger(f.keep)
	for _, r := range records {
		ledger.Restore(r)
	}
	f.mu.Lock()
	f.ledger = ledger
	f.mu.Unlock()
	for _, r := range records {
		f.changed(r, r.Effects())
	}
	return nil
}

func readSnapshot(r *bufio.Reader) ([]migrate.Record, error) {
	var header raftlogv1.SnapshotHeader
	if err := protodelim.UnmarshalFrom(r, &header); err != nil {
		return nil, fmt.Errorf("%w: header: %w", errUnreadable, err)
	}
	if header.GetVersion() != snapshotVersion {
		return nil, fmt.Errorf("%w: version %d", errUnreadable, header.GetVersion())
	}
	var records []migrate.Record
	for n := range header.GetRecords() {
		var m raftlogv1.Record
		if err := protodelim.UnmarshalFrom(r, &m); err != nil {
			return nil, fmt.Errorf("%w: record %d of %d: %w", errUnreadable, n+1, header.GetRecords(), err)
		}
		record, err := recordFromProto(&m)
		if err != nil {
			return nil, err
		}
		records = append(records, record)
	}
	if _, err := r.ReadByte(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: something follows the last record", errUnreadable)
	}
	return records, nil
}
