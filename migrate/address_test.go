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
	l := NewAddresses()
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
		got, err := l.Apply(step.event)
		if diff := cmp.Diff(step.want, got, cmpopts.EquateComparable(netip.Prefix{})); diff != "" || errors.Is(err, ErrAddressTaken) != step.taken {
			t.Errorf("%+v: %v\n%s", step.event, err, diff)
		}
	}
	other := Address{Prefix: netip.MustParsePrefix("10.0.0.99/24"), Host: "host-a", Since: at}
	if _, err := l.Apply(AddressAdded{other.Prefix, other.Host, at}); err != nil {
		t.Fatal(err)
	}
	want := []Address{other, {Prefix: p, Host: "host-b", Since: at}}
	if diff := cmp.Diff(want, l.List(), cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(want, NewAddresses(want...).List(), cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
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
