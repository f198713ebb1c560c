package timewait

import (
	"errors"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/tcprepair"
)

// More than fits into one reading is listed as a whole, each once; what is above the limit, and of
// other addresses, is not.
func TestMany(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	t.Parallel()
	const many, limit = 700, 450
	h, lister := newHost(t), newLister(t)
	h.do(func() error {
		if err := put("lo", serverAddresses[0], "10.9.0.3/24"); err != nil {
			return err
		}
		for _, address := range []string{"10.9.0.1", "10.9.0.3"} {
			k := kind{"", false, false, address, address}
			listener, at, err := k.listen(0)
			if err != nil {
				return err
			}
			defer unix.Close(listener)
			to := unix.SockaddrInet4{Addr: at.Addr().As4(), Port: int(at.Port())}
			for range many {
				client, err := socket(false)
				if err != nil {
					return err
				}
				if err := unix.Connect(client, &to); err != nil {
					return err
				}
				server, err := accept(listener)
				if err := errors.Join(err, unix.Close(server), unix.Close(client)); err != nil {
					return err
				}
			}
		}
		return nil
	})
	k := kind{there: "10.9.0.1"}
	all, others := h.list(lister, k, 10*many)
	seen := make(map[netip.AddrPort]bool)
	for _, w := range all {
		if w.Local.Addr() != netip.MustParseAddr(k.there) {
			t.Fatalf("%+v is listed", w)
		}
		seen[w.Remote] = true
	}
	if len(all) != many || len(seen) != many || others != 0 {
		t.Errorf("of %d %d are listed, %d different ones, and %d are not", many, len(all), len(seen), others)
	}
	began := time.Now()
	if all, others = h.list(lister, k, limit); len(all) != limit || others != many-limit {
		t.Errorf("of %d and a limit of %d %d are listed, and %d are not", many, limit, len(all), others)
	}
	t.Logf("listing %d takes %v", limit, time.Since(began))
	if none, others := h.list(lister, kind{there: "10.9.0.4"}, many); len(none) != 0 || others != 0 {
		t.Errorf("at an address without connections are %d and %d", len(none), others)
	}
}

// The clock of a connection is as TCP_TIMESTAMP tells it.
func TestTimestamp(t *testing.T) {
	const now = 5_000_000_123
	for _, tt := range []struct {
		offset uint32
		micro  bool
		want   uint32
	}{{0, false, 5000}, {1, false, 5000}, {3, false, 5002}, {0, true, 5000001}, {1<<32 - 1, true, 4999999}} {
		if got := timestamp(now, tt.offset, tt.micro); got != tt.want {
			t.Errorf("%d, %v: %d instead of %d", tt.offset, tt.micro, got, tt.want)
		}
	}
}

// Without a Lister nothing has to be closed.
func TestCloseNothing(t *testing.T) {
	var l *Lister
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

// What cannot have come from a List is refused before anything is made.
func TestValidate(t *testing.T) {
	good := func() tcprepair.TimeWait {
		return tcprepair.TimeWait{Local: netip.MustParseAddrPort("10.9.0.1:80"), Remote: netip.MustParseAddrPort("10.9.0.2:1234"), Left: time.Second}
	}
	w := good()
	if err := w.Validate(); err != nil {
		t.Fatal(err)
	}
	for what, spoil := range map[string]func(w *tcprepair.TimeWait){
		"no peer":         func(w *tcprepair.TimeWait) { w.Remote = netip.AddrPort{} },
		"another family":  func(w *tcprepair.TimeWait) { w.IPv6 = true },
		"a scale":         func(w *tcprepair.TimeWait) { w.ReceiveScale = 15 },
		"a negative time": func(w *tcprepair.TimeWait) { w.Left = -1 },
		"a long time":     func(w *tcprepair.TimeWait) { w.Left = 48 * time.Hour },
	} {
		w := good()
		spoil(&w)
		if err := w.Validate(); !errors.Is(err, tcprepair.ErrInvalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
