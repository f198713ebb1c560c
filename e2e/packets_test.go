package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/pagurus-project/pagurus/migrate"
)

// letPing lets all groups of a host have ping sockets, until the test is over.
func letPing(t *testing.T, name string) {
	t.Helper()
	const path = "/proc/sys/net/ipv4/ping_group_range"
	set := func(value []byte) (was []byte, err error) {
		err = within(t, name, func() error {
			if was, err = os.ReadFile(path); err != nil {
				return err
			}
			return os.WriteFile(path, value, 0)
		})
		return was, err
	}
	was, err := set([]byte("0 1000"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := set(was); err != nil {
			t.Error(err)
		}
	})
}

// TestPackets: raw, ping and packet sockets go on, with all that their program has chosen,
// whatever host they are on.
func TestPackets(t *testing.T) {
	need(t, "python3")
	ctx := limit(t, 2*time.Minute)
	for _, name := range []string{"host-a", "host-b"} {
		letPing(t, name)
	}
	p := netip.MustParsePrefix("10.77.0.108/24")
	addAddress(ctx, t, p, "host-a")
	notes := filepath.Join(t.TempDir(), "notes")
	peer := host(t, "client").Address()
	k := talker{start(ctx, t, "host-a", "python3", script(t, "packets.py"), p.Addr().String(), peer.String(), notes, "$ASK"), notes}
	rounds, missed := 0, 0
	for range trips {
		for _, to := range []string{"host-b", "host-a"} {
			k.mustGoOn(ctx, t)
			if r, err := bed.Move(ctx, k.Process, to, "--rehearse"); err != nil || r.State != migrate.StateRehearsed {
				t.Fatalf("rehearsing: %v, %s, %s", err, r.State, r.Stderr)
			}
			k.mustGoOn(ctx, t)
			r := moved(ctx, t, k.Process, to)
			if !slices.Equal(r.Addresses, []netip.Prefix{p}) {
				t.Errorf("%v went along, and not %s", r.Addresses, p)
			}
			if !slices.ContainsFunc(r.Warnings, func(f migrate.Finding) bool {
				return f.Code == migrate.CodeDegraded && strings.Contains(f.Detail, "of 3 raw, ping or packet sockets")
			}) {
				t.Errorf("no word of what is lost: %v", r.Warnings)
			}
			k.mustGoOn(ctx, t)
		}
	}
	note, _ := os.ReadFile(k.path) // was read before
	if n, err := fmt.Sscanf(string(note), "%d rounds, %d missed", &rounds, &missed); n != 2 || err != nil || missed > 8*trips {
		t.Errorf("%q: more than two for each time that it stood still", note)
	}
	t.Logf("%s", note)
}

// TestPacketsRefused: what the destination does not have for them is told before anything is
// touched.
func TestPacketsRefused(t *testing.T) {
	need(t, "python3")
	ctx := limit(t, time.Minute)
	letPing(t, "host-a")
	const device = "only-here"
	onHost := func(f func() error) error { return within(t, "host-a", f) }
	if err := onHost(func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: device}, PeerName: device + "-2"})
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := onHost(func() error {
			link, err := netlink.LinkByName(device)
			return errors.Join(err, netlink.LinkDel(link))
		}); err != nil {
			t.Error(err)
		}
	})
	own := host(t, "host-a").Address()
	k := start(ctx, t, "host-a", "python3", "-c", fmt.Sprintf(`
import os, signal, socket
ping = socket.socket(type=socket.SOCK_DGRAM, proto=1)
raw = socket.socket(type=socket.SOCK_RAW, proto=1)
raw.bind((%q, 0))
capture = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
capture.bind((%q, 0x88b5))
print("ready", os.getpid(), flush=True)
signal.pause()
`, own, device))
	r, err := bed.Move(ctx, k, "host-b")
	if err != nil || r.State != migrate.StateRefused {
		t.Fatalf("%v, %s, %s", err, r.State, r.Stderr)
	}
	for text, code := range map[string]migrate.Code{
		"a ping socket (protocol 1), and": migrate.CodeDescriptor,
		own.String():                      migrate.CodeAddressMissing,
		device:                            migrate.CodeDescriptor,
	} {
		if !slices.ContainsFunc(r.Blockers, func(b migrate.Finding) bool { return b.Code == code && strings.Contains(b.Detail, text) }) {
			t.Errorf("no %s with %q in %v", code, text, r.Blockers)
		}
	}
}
