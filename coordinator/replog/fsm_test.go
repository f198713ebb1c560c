package replog

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/raft"

	"github.com/pagurus-project/pagurus/migrate"
)

func readCloser(data []byte) io.ReadCloser { return io.NopCloser(bytes.NewReader(data)) }

// sink is a snapshot in memory.
type sink struct {
	bytes.Buffer
	fail             error
	closed, canceled bool
}

func (s *sink) Write(p []byte) (int, error) {
	if s.fail != nil {
		return 0, s.fail
	}
	return s.Buffer.Write(p)
}
func (s *sink) ID() string    { return "snapshot" }
func (s *sink) Close() error  { s.closed = true; return nil }
func (s *sink) Cancel() error { s.canceled = true; return nil }

func entry(t *testing.T, id string, event migrate.Event) *raft.Log {
	t.Helper()
	data, err := encodeEntry(id, event)
	if err != nil {
		t.Fatal(err)
	}
	return &raft.Log{Index: 5, Data: data}
}

func TestFSM(t *testing.T) {
	var told []string
	f := newFSM(10, func(r migrate.Record, effects []migrate.Effect) {
		told = append(told, string(r.State))
		if !cmp.Equal(effects, r.Effects()) {
			t.Errorf("%s: told of the effects %v", r.State, effects)
		}
	}, func() { told = append(told, "address") })
	for _, event := range []migrate.Event{
		migrate.Created{ID: "m1", PID: 7, From: "a", To: "b", At: at},
		migrate.PreflightDone{Epoch: 3, Command: "sleep"},
	} {
		if a := f.Apply(entry(t, "m1", event)).(applied); a.err != nil {
			t.Fatal(a.err)
		}
	}
	// What does not fit is an answer to its proposer and news to nobody.
	if a := f.Apply(entry(t, "m1", migrate.Running{})).(applied); !errors.Is(a.err, migrate.ErrOutOfPlace) || a.record.State != migrate.StatePrecopy {
		t.Errorf("got %v with %v", a.record.State, a.err)
	}
	added := &raft.Log{Index: 6, Data: encode(t, command{address: addressEvents[0]})}
	if a := f.Apply(added).(applied); a.err != nil || a.address.Host != "a" {
		t.Errorf("got %+v", a)
	}
	if diff := cmp.Diff([]string{"PENDING", "PRECOPY", "address"}, told); diff != "" {
		t.Error(diff)
	}

	// A snapshot is of the moment at which it was taken.
	snap, err := f.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	before := f.records()
	f.Apply(entry(t, "m1", migrate.Decided{Decision: migrate.DecisionAbort, At: at}))
	f.Apply(entry(t, "m2", migrate.Created{ID: "m2", PID: 8, From: "a", To: "b", At: at}))
	there, index := f.addresses()
	f.Apply(&raft.Log{Index: 7, Data: encode(t, command{address: addressEvents[1]})})
	var s sink
	if err := snap.Persist(&s); err != nil || !s.closed || s.canceled {
		t.Fatalf("persist: %v, closed %v, canceled %v", err, s.closed, s.canceled)
	}
	snap.Release()

	told = nil
	if err := f.Restore(readCloser(s.Bytes())); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, f.records(), addrs); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"PRECOPY", "address"}, told); diff != "" {
		t.Error(diff)
	}
	got, as := f.addresses()
	if diff := cmp.Diff(there, got, addrs); diff != "" || as != 6 || index != 5 {
		t.Errorf("as of %d, %d before\n%s", as, index, diff)
	}
	if r, ok := f.holder("a", 7); !ok || r.ID != "m1" {
		t.Errorf("holder is %v, %v", r, ok)
	}
}

func TestSnapshotDamaged(t *testing.T) {
	f := newFSM(10, func(migrate.Record, []migrate.Effect) {}, func() {})
	f.ledger.Restore(record)
	var s sink
	if err := (snapshot{6, f.records(), []migrate.Address{address}}).write(&s); err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{
		"empty":   nil,
		"cut":     s.Bytes()[:s.Len()-1],
		"longer":  append(bytes.Clone(s.Bytes()), 0),
		"version": append([]byte{2, 8, 9}, s.Bytes()...),
	} {
		if err := f.Restore(readCloser(data)); !errors.Is(err, errUnreadable) {
			t.Errorf("%s: %v", name, err)
		}
		// What was there is still there.
		if diff := cmp.Diff([]migrate.Record{record}, f.records(), addrs); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	full := errors.New("disk full")
	bad := sink{fail: full}
	if err := (snapshot{6, f.records(), nil}).Persist(&bad); !errors.Is(err, full) || bad.closed || !bad.canceled {
		t.Errorf("%v, closed %v, canceled %v", err, bad.closed, bad.canceled)
	}
}

func TestFSMStopsAtWhatItCannotRead(t *testing.T) {
	f := newFSM(10, func(migrate.Record, []migrate.Effect) {}, func() {})
	defer func() {
		if msg, _ := recover().(string); !strings.Contains(msg, "entry 5") || !strings.Contains(msg, "newest release") {
			t.Errorf("recovered %q", msg)
		}
	}()
	f.Apply(&raft.Log{Index: 5, Data: []byte{0xff}})
	t.Error("went on")
}
