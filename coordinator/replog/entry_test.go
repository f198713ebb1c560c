package replog

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/pagurus-project/pagurus/migrate"
	raftlogv1 "github.com/pagurus-project/pagurus/proto/raftlog/v1"
)

var (
	at       = time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	phases   = map[string]float64{"stop": 1.5}
	findings = []migrate.Finding{{Code: "children", Detail: "PID 8", Hint: "wait"}}
	options  = migrate.Options{
		MaxDowntime: time.Second, BandwidthBytes: 1, Compress: "s2", MaxRounds: 2,
		Strict: true, Rehearse: true, Verify: true, AllowDegraded: true, WithAddresses: []netip.Addr{prefix.Addr()},
	}
	measured = migrate.Measured{
		Rounds:   []migrate.Round{{N: 1, Pages: 2, Bytes: 3, WireBytes: 4, MS: 5, Frozen: true}},
		PhasesMS: phases, DowntimeMS: 6, Bytes: 7, WireBytes: 8,
	}
	// One of each kind, with nothing left out.
	events = []migrate.Event{
		migrate.Created{ID: "m1", Key: "k", PID: 7, From: "a", To: "b", Options: options, Blockers: findings, At: at},
		migrate.PreflightDone{
			Epoch: 3, Command: "sleep", Blockers: findings, Warnings: findings, PhasesMS: phases, Reserved: true, At: at,
			Addresses: []netip.Prefix{prefix},
		},
		migrate.Decided{
			Decision: migrate.DecisionCommit, Reason: "r", Blockers: findings, Prepared: 3, Promised: 4,
			Measured: measured, Rehearsed: true, Source: migrate.OutcomeKilled, Lost: "l", At: at,
		},
		migrate.Running{DowntimeMS: 2, PhasesMS: phases},
		migrate.NeverRan{Reason: "r", At: at},
		migrate.Fenced{By: "anna", At: at},
		migrate.SourceSettled{Outcome: migrate.OutcomeResumed, DowntimeMS: 2, PhasesMS: phases, Lost: "l", At: at},
		migrate.TargetSettled{Outcome: migrate.OutcomeReleased},
		migrate.Forgotten{},
	}
	record = migrate.Record{
		ID: "m1", Key: "k", PID: 7, From: "a", To: "b", Options: options, State: migrate.StateAborted, Epoch: 3,
		Command: "sleep", Reason: "r", Blockers: findings, Warnings: findings, Source: migrate.OutcomeResumed,
		Target: migrate.OutcomeReleased, Forgotten: true, Measured: measured, Created: at, Ended: at.Add(time.Second),
		Addresses: []netip.Prefix{prefix},
	}
	prefix        = netip.MustParsePrefix("10.0.0.100/24")
	addressEvents = []migrate.AddressEvent{
		migrate.AddressAdded{Prefix: prefix, Host: "a", At: at},
		migrate.AddressLeaving{Address: prefix.Addr()},
		migrate.AddressRemoved{Address: prefix.Addr(), Host: "a"},
	}
	address = migrate.Address{Prefix: prefix, Host: "a", Since: at, Leaving: true}
)

// complete fails for a field without a value: a new field of an event or
// record has to be given one here, and then to come back from the log.
func complete(t *testing.T, name string, v reflect.Value) {
	t.Helper()
	switch {
	case slices.Contains([]reflect.Type{reflect.TypeFor[time.Time](), reflect.TypeFor[netip.Addr](), reflect.TypeFor[netip.Prefix]()}, v.Type()):
	case v.Kind() == reflect.Struct:
		for i := range v.NumField() {
			complete(t, name+"."+v.Type().Field(i).Name, v.Field(i))
		}
		return
	case v.Kind() == reflect.Slice && v.Len() > 0:
		complete(t, name+"[0]", v.Index(0))
	}
	if v.IsZero() {
		t.Errorf("%s has no value in this test", name)
	}
}

func TestEventsComeBack(t *testing.T) {
	for _, event := range events {
		t.Run(fmt.Sprintf("%T", event), func(t *testing.T) {
			complete(t, fmt.Sprintf("%T", event), reflect.ValueOf(event))
			data, err := encodeEntry("m1", event)
			if err != nil {
				t.Fatal(err)
			}
			got, err := decodeEntry(data)
			if err != nil {
				t.Fatal(err)
			}
			if got.id != "m1" || got.address != nil {
				t.Errorf("migration %q, address %v", got.id, got.address)
			}
			if diff := cmp.Diff(event, got.event, addrs); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestFilesOfEarlierReleases decodes entries that were written once and are
// never regenerated: what is on disks must stay readable.
func TestFilesOfEarlierReleases(t *testing.T) {
	for i, event := range events {
		path := filepath.Join("testdata", "entries", fmt.Sprintf("%d-%s.bin", i, reflect.TypeOf(event).Name()))
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		got, err := decodeEntry(data)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if diff := cmp.Diff(withoutLater(event), got.event, addrs); diff != "" {
			t.Errorf("%s: %s", path, diff)
		}
	}
	data, err := os.ReadFile(filepath.Join("testdata", "snapshot.bin"))
	if err != nil {
		t.Fatal(err)
	}
	f := newFSM(10, func(migrate.Record, []migrate.Effect) {}, func() {})
	if err := f.Restore(readCloser(data)); err != nil {
		t.Fatal(err)
	}
	before := record
	before.Addresses, before.Options.WithAddresses = nil, nil
	if diff := cmp.Diff([]migrate.Record{before}, f.records(), addrs); diff != "" {
		t.Error(diff)
	}
}

// withoutLater is an event without the fields that have come since.
func withoutLater(event migrate.Event) migrate.Event {
	switch e := event.(type) {
	case migrate.Created:
		e.Options.WithAddresses = nil
		return e
	case migrate.PreflightDone:
		e.Addresses = nil
		return e
	case migrate.Decided:
		e.Lost = ""
		return e
	case migrate.SourceSettled:
		e.Lost = ""
		return e
	}
	return event
}

func TestAddressEventsComeBack(t *testing.T) {
	for _, event := range addressEvents {
		complete(t, fmt.Sprintf("%T", event), reflect.ValueOf(event))
		got, err := decodeEntry(encode(t, command{address: event}))
		if diff := cmp.Diff(event, got.address, addrs); err != nil || diff != "" {
			t.Errorf("%v %s", err, diff)
		}
		path := filepath.Join("testdata", "entries", reflect.TypeOf(event).Name()+".bin")
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if got, err = decodeEntry(data); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if diff := cmp.Diff(event, got.address, addrs); diff != "" {
			t.Errorf("%s: %s", path, diff)
		}
	}
	complete(t, "address", reflect.ValueOf(address))
	got, err := addressFromProto(addressToProto(address))
	if diff := cmp.Diff(address, got, addrs); err != nil || diff != "" {
		t.Errorf("%v %s", err, diff)
	}
}

// addrs compares addresses.
var addrs = cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})

func TestDecodeRefuses(t *testing.T) {
	unknown, err := proto.Marshal(&raftlogv1.Entry{Migration: "m1"})
	if err != nil {
		t.Fatal(err)
	}
	nowhere, err := proto.Marshal(&raftlogv1.Entry{Event: &raftlogv1.Entry_AddressAdded{AddressAdded: &raftlogv1.AddressAdded{Prefix: "10.0.0.1/8"}}})
	if err != nil {
		t.Fatal(err)
	}
	nothing, err := proto.Marshal(&raftlogv1.Entry{Event: &raftlogv1.Entry_AddressRemoved{}})
	if err != nil {
		t.Fatal(err)
	}
	for _, data := range [][]byte{nil, {0xff}, unknown, nowhere, nothing} {
		if _, err := decodeEntry(data); !errors.Is(err, errUnreadable) {
			t.Errorf("%x: %v", data, err)
		}
	}
	if _, err := encodeEntry("m1", nil); err == nil {
		t.Error("no event was encoded")
	}
}

func encode(t testing.TB, c command) []byte {
	t.Helper()
	data, err := encodeEntry(c.id, c.event)
	if c.address != nil {
		data, err = encodeAddress(c.address)
	}
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// FuzzDecodeEntry: no bytes make the decoder or the ledger panic, and what is
// decoded says the same when it is written again.
func FuzzDecodeEntry(f *testing.F) {
	for _, event := range events {
		data, err := encodeEntry("m1", event)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	for _, event := range addressEvents {
		f.Add(encode(f, command{address: event}))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := decodeEntry(data)
		if err != nil {
			return
		}
		if c.address != nil {
			_, _ = migrate.NewLedger(1).ApplyAddress(c.address)
		} else {
			ledger := migrate.NewLedger(1)
			ledger.Restore(record)
			_, _, _ = ledger.Apply(c.id, c.event)
		}
		again := encode(t, c)
		c2, err := decodeEntry(again)
		if err != nil || c2.id != c.id {
			t.Fatalf("written again: %q, %v", c2.id, err)
		}
		third := encode(t, c2)
		if text(t, again) != text(t, third) {
			t.Errorf("%s became %s", text(t, again), text(t, third))
		}
	})
}

// text is an entry in a form that does not depend on the order of maps and
// compares NaN with itself.
func text(t *testing.T, data []byte) string {
	var entry raftlogv1.Entry
	if err := proto.Unmarshal(data, &entry); err != nil {
		t.Fatal(err)
	}
	return protojson.Format(&entry)
}

// FuzzReadSnapshot: no bytes make it panic or take memory that they do not pay for.
func FuzzReadSnapshot(f *testing.F) {
	var buf bytes.Buffer
	if err := (snapshot{7, []migrate.Record{record}, []migrate.Address{address}}).write(&buf); err != nil {
		f.Fatal(err)
	}
	f.Add(buf.Bytes())
	f.Fuzz(func(_ *testing.T, data []byte) {
		fsm := newFSM(1, func(migrate.Record, []migrate.Effect) {}, func() {})
		_ = fsm.Restore(readCloser(data))
	})
}
