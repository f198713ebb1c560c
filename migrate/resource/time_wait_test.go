package resource

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/tcprepair"
)

// What a source says of other addresses than those that come along is not made here, and
// what stays behind is told once.
func TestRemember(t *testing.T) {
	ended := func(local string) tcprepair.TimeWait {
		return tcprepair.TimeWait{Local: netip.MustParseAddrPort(local), Remote: netip.MustParseAddrPort("10.9.0.2:1")}
	}
	m := &image.Image{
		Addresses: []netip.Prefix{netip.MustParsePrefix("10.9.0.1/24")},
		TimeWaits: image.TimeWaits{All: []tcprepair.TimeWait{ended("10.9.0.1:80"), ended("10.9.0.3:80")}, Others: 4, Failed: "no reason"},
	}
	a := Arrival{TimeWaits: timeWaits(m)}
	if len(a.TimeWaits.All) != 1 || a.TimeWaits.All[0] != m.TimeWaits.All[0] {
		t.Errorf("of %v these come along: %v", m.TimeWaits.All, a.TimeWaits.All)
	}
	if failed, err := remember(m.TimeWaits.All, time.Now()); failed != 2 || err == nil {
		t.Errorf("when there is no time left %d fail, %v", failed, err)
	}
	a.TimeWaits.All = nil
	told := errors.Join(a.Remember()...)
	if told == nil || !strings.Contains(told.Error(), "4 connections") || !strings.Contains(told.Error(), "no reason") {
		t.Errorf("what stays behind is told as %v", told)
	}
	if again := a.Remember(); len(again) > 0 {
		t.Errorf("it is told once more: %v", again)
	}
}
