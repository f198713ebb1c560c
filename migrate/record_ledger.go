package migrate

import (
	"net/netip"
	"slices"
)

// A Ledger is all records and service addresses together, with the rules that
// span them: a request that is repeated with its key makes no second migration, a
// process is in one migration at a time and so is an address, which is where the
// decision says that the process runs, and the history is bounded. Like
// [Record.Apply] it is deterministic. It is not safe for concurrent use.
type Ledger struct {
	keep      int // settled records
	records   map[string]Record
	ids       []string          // of all records, sorted: IDs sort by time
	keys      map[string]string // idempotency key → ID
	settled   int
	addresses map[netip.Addr]Address
}

// NewLedger makes an empty ledger that keeps the newest settled records, as
// many as given, and all others.
func NewLedger(keep int) *Ledger {
	return &Ledger{keep: keep, records: map[string]Record{}, keys: map[string]string{}, addresses: map[netip.Addr]Address{}}
}

// Apply applies an event to the record of that ID. A Created whose key is
// known returns the record that has it, under the ID that it has.
func (l *Ledger) Apply(id string, e Event) (Record, []Effect, error) {
	if created, ok := e.(Created); ok {
		if known, ok := l.records[l.keys[created.Key]]; ok {
			return known, known.Effects(), nil
		}
		if busy, ok := l.Holder(created.From, created.PID); ok && busy.ID != created.ID {
			created.Blockers = joined(created.Blockers, []Finding{Busy(busy.ID, created.From, created.PID)})
		}
		id, e = created.ID, created
	}
	before := l.records[id]
	if done, ok := e.(PreflightDone); ok && before.State == StatePending {
		done.Blockers = joined(done.Blockers, l.unfit(before, done.Addresses))
		e = done
	}
	after, effects, err := before.Apply(e)
	if err != nil {
		return after, effects, err
	}
	l.put(before, after)
	l.carry(before, after, e)
	return after, effects, nil
}

// Busy is the blocker of a process that is in a migration already.
func Busy(migration, host string, pid int) Finding {
	return Findingf(CodeBusy, "wait for it or cancel it: migratectl watch "+migration,
		"process %d on %s is in migration %s", pid, host, migration)
}

// Restore puts a record of a snapshot back.
func (l *Ledger) Restore(r Record) { l.put(l.records[r.ID], r) }

func (l *Ledger) put(before, after Record) {
	if before.ID == "" {
		at, _ := slices.BinarySearch(l.ids, after.ID)
		l.ids = slices.Insert(l.ids, at, after.ID)
		if after.Key != "" {
			l.keys[after.Key] = after.ID
		}
	}
	l.records[after.ID] = after
	if after.Settled() && !before.Settled() {
		l.settled++
		l.prune()
	}
}

// prune forgets the oldest settled records beyond those to keep.
func (l *Ledger) prune() {
	for l.settled > l.keep {
		at := slices.IndexFunc(l.ids, func(id string) bool { return l.records[id].Settled() })
		r := l.records[l.ids[at]]
		l.ids = slices.Delete(l.ids, at, at+1)
		delete(l.records, r.ID)
		delete(l.keys, r.Key)
		l.settled--
	}
}

// Record returns the record of that ID.
func (l *Ledger) Record(id string) (Record, bool) {
	r, ok := l.records[id]
	return r, ok
}

// Records returns all records, oldest first.
func (l *Ledger) Records() []Record {
	records := make([]Record, len(l.ids))
	for i, id := range l.ids {
		records[i] = l.records[id]
	}
	return records
}

// Holder returns the migration that has its hands on a process.
func (l *Ledger) Holder(host string, pid int) (Record, bool) {
	for _, id := range l.ids {
		if r := l.records[id]; r.Holds(host, pid) {
			return r, true
		}
	}
	return Record{}, false
}
