package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/e2e/testbed"
	"github.com/pagurus-project/pagurus/migrate"
)

// A talker is a process that talks to a server (talk.py).
type talker struct {
	*testbed.Process
	path string // of what it notes
}

// mustGoOn waits until it has had answers that it had not before.
func (k talker) mustGoOn(ctx context.Context, t *testing.T) {
	t.Helper()
	before, _ := os.ReadFile(k.path) // is not there at the beginning
	var now []byte
	err := testbed.Await(ctx, "the process to have more answers", func() (bool, error) {
		now, _ = os.ReadFile(k.path)
		return len(now) > 0 && string(now) != string(before), nil
	})
	if err != nil || strings.HasPrefix(string(now), "wrong") {
		t.Fatalf("%v: %q, %q%s", err, now, k.Output(), bed.Logs("host-a", "host-b", "host-c"))
	}
}

// TestBothEnds moves a process that talks to itself.
func TestBothEnds(t *testing.T) {
	need(t, "python3")
	ctx := limit(t, 2*time.Minute)
	p := netip.MustParsePrefix("10.77.0.107/24")
	addAddress(ctx, t, p, "host-a")
	at := netip.AddrPortFrom(p.Addr(), 7361)
	notes := filepath.Join(t.TempDir(), "notes")
	k := talker{start(ctx, t, "host-a", "python3", script(t, "talk.py"), at.Addr().String(), at.Addr().String(), fmt.Sprint(at.Port()), notes, "self", "$ASK"), notes}
	for range trips {
		for _, to := range []string{"host-b", "host-a"} {
			k.mustGoOn(ctx, t)
			moved(ctx, t, k.Process, to)
			k.mustGoOn(ctx, t)
		}
	}
	note, _ := os.ReadFile(k.path) // was read before
	t.Logf("%s", note)
}

// TestBothMove moves a server and its client, each from a host to another one, at the
// same time.
func TestBothMove(t *testing.T) {
	need(t, "python3")
	ctx := limit(t, 3*time.Minute)
	here, there := netip.MustParsePrefix("10.77.0.108/24"), netip.MustParsePrefix("10.77.0.109/24")
	addAddress(ctx, t, here, "host-a")
	addAddress(ctx, t, there, "host-b")
	at := netip.AddrPortFrom(here.Addr(), 7362)
	notes := filepath.Join(t.TempDir(), "notes") // goes when nobody writes there any more
	// Either would be in the way of a look for what the other one has left: both are ended
	// before that.
	before, err := bed.Traces()
	if err != nil {
		t.Fatal(err)
	}
	var server, client *testbed.Process
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
		for _, p := range []*testbed.Process{client, server} {
			if p == nil {
				continue
			}
			if err := p.End(ctx, unix.SIGKILL); err != nil {
				t.Error(err)
			}
		}
		nothingLeft(ctx, t, before)
	})
	if server, err = bed.Start(ctx, "host-a", "$BIN/workload", "memory", "-size", "16MiB", "-echo", at.String(), "-ask", "$ASK"); err != nil {
		t.Fatal(err)
	}
	if client, err = bed.Start(ctx, "host-b", "python3", script(t, "talk.py"), there.Addr().String(), at.Addr().String(), fmt.Sprint(at.Port()), notes, "$ASK"); err != nil {
		t.Fatal(err)
	}
	asks := talker{client, notes}
	next := map[string]string{"host-a": "host-b", "host-b": "host-c", "host-c": "host-a"}
	for range 3 * len(next) { // so that everybody is where they were
		asks.mustGoOn(ctx, t)
		var moving sync.WaitGroup
		for _, p := range []*testbed.Process{server, client} {
			moving.Go(func() {
				to := next[p.Host]
				r, err := bed.Move(ctx, p, to)
				if err != nil || r.State != migrate.StateDone {
					t.Errorf("moving %d to %s: %v, %s, %s", p.PID, to, err, r.State, r.Stderr)
				}
			})
		}
		moving.Wait()
		if t.Failed() {
			t.Fatal(bed.Logs("host-a", "host-b", "host-c"))
		}
		asks.mustGoOn(ctx, t)
	}
	note, _ := os.ReadFile(notes) // was read before
	t.Logf("%s", note)
	content(ctx, t, server)
}
