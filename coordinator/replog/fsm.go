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
	keep             int
	changed          func(migrate.Record, []migrate.Effect)
	addressesChanged func()

	mu     sync.RWMutex
	ledger *migrate.Ledger
	index  uint64 // of the last entry in it
}

var _ raft.FSM = (*fsm)(nil)

func newFSM(keep int, changed func(migrate.Record, []migrate.Effect), addressesChanged func()) *fsm {
	return &fsm{keep: keep, changed: changed, addressesChanged: addressesChanged, ledger: migrate.NewLedger(keep)}
}

// applied is what Apply returns through raft to whoever proposed the entry.
type applied struct {
	record  migrate.Record
	address migrate.Address
	err     error
}

// Apply is called by raft, one committed entry after the other. To go on past
// an entry that it cannot read would let this server hold another record than
// the others and give another answer on who runs a process, so it stops.
func (f *fsm) Apply(l *raft.Log) any {
	c, err := decodeEntry(l.Data)
	if err != nil {
		panic(fmt.Sprintf("entry %d of the replicated log: %v; install the newest release on this server", l.Index, err))
	}
	if c.address != nil {
		f.mu.Lock()
		address, err := f.ledger.ApplyAddress(c.address)
		f.index = l.Index
		f.mu.Unlock()
		if err == nil {
			f.addressesChanged()
		}
		return applied{address: address, err: err}
	}
	f.mu.Lock()
	record, effects, err := f.ledger.Apply(c.id, c.event)
	f.index = l.Index
	f.mu.Unlock()
	if err == nil {
		f.changed(record, effects)
		if len(record.Addresses) > 0 {
			f.addressesChanged()
		}
	}
	return applied{record: record, err: err}
}

func (f *fsm) addresses() (all []migrate.Address, index uint64) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.ledger.Addresses(), f.index
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

// Snapshot takes the lists of records and addresses; they are values that nobody
// writes to, so Persist may run beside further entries.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return snapshot{f.index, f.ledger.Records(), f.ledger.Addresses()}, nil
}

type snapshot struct {
	index     uint64
	records   []migrate.Record
	addresses []migrate.Address
}

func (s snapshot) Persist(sink raft.SnapshotSink) error {
	if err := s.write(sink); err != nil {
		return errors.Join(fmt.Errorf("writing snapshot: %w", err), sink.Cancel())
	}
	return sink.Close()
}

func (s snapshot) Release() {}

func (s snapshot) write(w io.Writer) error {
	b := bufio.NewWriter(w)
	header := &raftlogv1.SnapshotHeader{Version: snapshotVersion, Records: uint64(len(s.records)), Addresses: uint64(len(s.addresses)), Index: s.index}
	if _, err := protodelim.MarshalTo(b, header); err != nil {
		return err
	}
	for _, r := range s.records {
		if _, err := protodelim.MarshalTo(b, recordToProto(r)); err != nil {
			return fmt.Errorf("record %s: %w", r.ID, err)
		}
	}
	for _, a := range s.addresses {
		if _, err := protodelim.MarshalTo(b, addressToProto(a)); err != nil {
			return fmt.Errorf("address %s: %w", a.Prefix, err)
		}
	}
	return b.Flush()
}

// Restore replaces the ledger. Whoever watches records hears of each again.
func (f *fsm) Restore(source io.ReadCloser) error {
	defer source.Close()
	s, err := readSnapshot(bufio.NewReader(source))
	if err != nil {
		return fmt.Errorf("reading snapshot: %w", err)
	}
	ledger := migrate.NewLedger(f.keep)
	for _, r := range s.records {
		ledger.Restore(r)
	}
	for _, a := range s.addresses {
		ledger.RestoreAddress(a)
	}
	f.mu.Lock()
	f.ledger, f.index = ledger, s.index
	f.mu.Unlock()
	for _, r := range s.records {
		f.changed(r, r.Effects())
	}
	f.addressesChanged()
	return nil
}

func readSnapshot(r *bufio.Reader) (s snapshot, err error) {
	var header raftlogv1.SnapshotHeader
	if err := protodelim.UnmarshalFrom(r, &header); err != nil {
		return s, fmt.Errorf("%w: header: %w", errUnreadable, err)
	}
	if header.GetVersion() != snapshotVersion {
		return s, fmt.Errorf("%w: version %d", errUnreadable, header.GetVersion())
	}
	s.index = header.GetIndex()
	for n := range header.GetRecords() {
		var m raftlogv1.Record
		if err := protodelim.UnmarshalFrom(r, &m); err != nil {
			return s, fmt.Errorf("%w: record %d of %d: %w", errUnreadable, n+1, header.GetRecords(), err)
		}
		record, err := recordFromProto(&m)
		if err != nil {
			return s, err
		}
		s.records = append(s.records, record)
	}
	for n := range header.GetAddresses() {
		var m raftlogv1.Address
		if err := protodelim.UnmarshalFrom(r, &m); err != nil {
			return s, fmt.Errorf("%w: address %d of %d: %w", errUnreadable, n+1, header.GetAddresses(), err)
		}
		a, err := addressFromProto(&m)
		if err != nil {
			return s, err
		}
		s.addresses = append(s.addresses, a)
	}
	if _, err := r.ReadByte(); !errors.Is(err, io.EOF) {
		return s, fmt.Errorf("%w: something follows the last of them", errUnreadable)
	}
	return s, nil
}
