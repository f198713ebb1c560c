package migrate

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestAddresses(t *testing.T) {
	p, at := netip.MustParsePrefix("10.0.0.100/24"), time.Unix(1000, 0)
	added := AddressAdded{p, "host-a", at}
	there := Address{Prefix: p, Host: "host-a", Since: at}
	leaving := there
	leaving.Leaving = true
	l := NewLedger(0)
	for _, step := range []struct {
		event AddressEvent
		want  Address
		taken bool
	}{
		{AddressRemoved{p.Addr(), "host-a"}, Address{}, false},
		{AddressLeaving{p.Addr()}, Address{}, false},
		{added, there, false},
		{AddressAdded{p, "host-a", at.Add(time.Hour)}, there, false},
		{AddressAdded{p, "host-b", at}, there, true},
		{AddressAdded{netip.MustParsePrefix("10.0.0.100/16"), "host-a", at}, there, true},
		{AddressRemoved{p.Addr(), "host-a"}, there, false}, // nobody has asked for it
		{AddressLeaving{p.Addr()}, leaving, false},
		{AddressLeaving{p.Addr()}, leaving, false},
		{added, leaving, true},
		{AddressRemoved{p.Addr(), "host-b"}, leaving, false}, // a word of before
		{AddressRemoved{p.Addr(), "host-a"}, Address{}, false},
		{AddressAdded{p, "host-b", at}, Address{Prefix: p, Host: "host-b", Since: at}, false},
	} {
		got, err := l.ApplyAddress(step.event)
		if diff := cmp.Diff(step.want, got, cmpopts.EquateComparable(netip.Prefix{})); diff != "" || errors.Is(err, ErrAddressTaken) != step.taken {
			t.Errorf("%+v: %v\n%s", step.event, err, diff)
		}
	}
	other := Address{Prefix: netip.MustParsePrefix("10.0.0.99/24"), Host: "host-a", Since: at}
	if _, err := l.ApplyAddress(AddressAdded{other.Prefix, other.Host, at}); err != nil {
		t.Fatal(err)
	}
	want := []Address{other, {Prefix: p, Host: "host-b", Since: at}}
	if diff := cmp.Diff(want, l.Addresses(), cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
		t.Error(diff)
	}
	restored := NewLedger(0)
	for _, a := range want {
		restored.RestoreAddress(a)
	}
	if diff := cmp.Diff(want, restored.Addresses(), cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
		t.Error(diff)
	}
}

func TestValidateAddress(t *testing.T) {
	for text, valid := range map[string]bool{
		"10.0.0.100/24": true, "fd00::100/64": true, "192.0.2.0/31": true, "192.0.2.1/31": true, "fd00::/127": true, "10.0.0.254/24": true, "10.0.0.255/24": false, "fd00::/64": false,
		"10.0.0.100/32": false, "fd00::100/128": false, "10.0.0.0/24": false, "127.0.0.1/8": false,
		"224.0.0.1/4": false, "fe80::1/64": false, "::ffff:10.0.0.1/120": false,
	} {
		p, err := netip.ParsePrefix(text)
		if err == nil {
			err = ValidateAddress(p)
		}
		if (err == nil) != valid {
			t.Errorf("%s: %v", text, err)
		}
	}
	if ValidateAddress(netip.Prefix{}) == nil {
		t.Error("no address at all")
	}
}

// Addresses go along with a process: they are where the log says that it runs, and
// nobody else's as long as that may change.
func TestAddressesGoAlong(t *testing.T) {
	p, at := netip.MustParsePrefix("10.0.0.100/24"), time.Unix(1000, 0)
	other := netip.MustParsePrefix("10.0.0.101/24")
	codes := func(r Record) (all []Code) {
		for _, f := range r.Blockers {
			all = append(all, f.Code)
		}
		return all
	}
	begin := func(t *testing.T) (*Ledger, func(id string, e Event) Record, func(want string)) {
		l := NewLedger(10)
		for _, a := range []netip.Prefix{p, other} {
			if _, err := l.ApplyAddress(AddressAdded{a, "a", at}); err != nil {
				t.Fatal(err)
			}
		}
		apply := func(id string, e Event) Record {
			t.Helper()
			r, _, err := l.Apply(id, e)
			if err != nil {
				t.Fatalf("%T: %v", e, err)
			}
			return r
		}
		where := func(want string) {
			t.Helper()
			all := l.Addresses()
			if len(all) != 2 || all[0].Host != want || all[1].Host != "a" {
				t.Errorf("%+v, not on %s", all, want)
			}
			// Whether it can be removed is tried on a copy.
			copied := NewLedger(10)
			for _, r := range l.Records() {
				copied.Restore(r)
			}
			for _, a := range all {
				copied.RestoreAddress(a)
			}
			held := len(l.Records()) > 0 && !l.Records()[0].Settled()
			if _, err := copied.ApplyAddress(AddressLeaving{p.Addr()}); errors.Is(err, ErrAddressHeld) != held {
				t.Errorf("removing what is in a migration: %v", err)
			}
			if _, err := copied.ApplyAddress(AddressLeaving{other.Addr()}); err != nil {
				t.Errorf("removing another one: %v", err)
			}
		}
		apply("1", Created{ID: "1", PID: 7, From: "a", To: "b", At: at})
		return l, apply, where
	}
	done := PreflightDone{Epoch: 1, Addresses: []netip.Prefix{p}, Reserved: true}
	commit := Decided{Decision: DecisionCommit, Prepared: 1, Promised: 1, At: at.Add(time.Hour)}

	t.Run("done", func(t *testing.T) {
		l, apply, where := begin(t)
		apply("1", done)
		where("a")
		apply("1", commit)
		where("b")
		if since := l.Addresses()[0].Since; !since.Equal(commit.At) {
			t.Errorf("there since %v", since)
		}
		apply("1", commit)
		apply("1", Running{})
		where("b")
		apply("1", SourceSettled{Outcome: OutcomeDisposed})
		where("b")
	})
	t.Run("aborted", func(t *testing.T) {
		_, apply, where := begin(t)
		apply("1", done)
		apply("1", Decided{Decision: DecisionAbort})
		where("a")
		apply("1", SourceSettled{Outcome: OutcomeResumed})
		apply("1", TargetSettled{Outcome: OutcomeReleased})
		where("a")
	})
	for name, e := range map[string]Event{"never ran": NeverRan{At: at}, "fenced": Fenced{At: at}} {
		t.Run(name, func(t *testing.T) {
			_, apply, where := begin(t)
			apply("1", done)
			apply("1", commit)
			where("b")
			apply("1", e)
			where("a")
			apply("1", SourceSettled{Outcome: OutcomeResumed})
			where("a")
		})
	}
	t.Run("two at once", func(t *testing.T) {
		_, apply, _ := begin(t)
		apply("1", done)
		apply("2", Created{ID: "2", PID: 8, From: "a", To: "b", At: at})
		r := apply("2", PreflightDone{Epoch: 1, Addresses: []netip.Prefix{other, p}, Reserved: true})
		if r.State != StateRefused || !cmp.Equal(codes(r), []Code{CodeAddressInUse}) || r.Target != OutcomeOpen {
			t.Errorf("the second: %+v", r)
		}
	})
	for name, e := range map[string][]AddressEvent{
		"leaving":   {AddressLeaving{p.Addr()}},
		"removed":   {AddressLeaving{p.Addr()}, AddressRemoved{p.Addr(), "a"}},
		"elsewhere": {AddressLeaving{p.Addr()}, AddressRemoved{p.Addr(), "a"}, AddressAdded{p, "b", at}},
	} {
		t.Run(name+" since preflight", func(t *testing.T) {
			l, apply, _ := begin(t)
			for _, e := range e {
				if _, err := l.ApplyAddress(e); err != nil {
					t.Fatal(err)
				}
			}
			if r := apply("1", done); r.State != StateRefused || !cmp.Equal(codes(r), []Code{CodeAddressMissing}) {
				t.Errorf("%+v", r)
			}
		})
	}
}
