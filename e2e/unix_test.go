package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pagurus-project/pagurus/migrate"
)

// unixAnswer is what unix.py knows.
type unixAnswer struct {
	Number  int
	Names   []string
	Peers   []string
	Kept    [][3]*string // what, the sender's name, and who that was
	OfName  []string     `json:"of_name"` // connections of abstract names, and who has those
	Found   []string     // by passing.py
	Removed string
	Outer   string
}

// askUnix connects to a unix socket on a host, whose root is given, and asks.
func askUnix(t *testing.T, host, network, name string) unixAnswer {
	t.Helper()
	var a unixAnswer
	err := within(t, host, func() error {
		conn, err := net.DialTimeout(network, name, 5*time.Second)
		if err != nil {
			return err
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			return err
		}
		if _, err := conn.Write([]byte("next\n")); err != nil {
			return err
		}
		buf := make([]byte, 1<<16)
		n, err := conn.Read(buf)
		if err != nil {
			return err
		}
		return json.Unmarshal(buf[:n], &a)
	})
	if err != nil {
		t.Fatalf("asking %s on %s: %v", name, host, err)
	}
	return a
}

// TestUnixSockets: those that listen are found at their places on the new host, and no more
// on the old one; datagrams that were not read go along; names are what they were.
func TestUnixSockets(t *testing.T) {
	need(t, "python3")
	for name, top := range map[string]string{"own directories": "/srv/local/unix", "a shared directory": ""} {
		t.Run(name, func(t *testing.T) {
			ctx := limit(t, 3*time.Minute)
			shared := top == ""
			if shared {
				top = t.TempDir()
			}
			roots := make(map[string]string)
			log, heard := "/srv/local/log-"+filepath.Base(top), t.TempDir()
			for _, h := range []string{"host-a", "host-b"} {
				root, err := host(t, h).Root()
				if err == nil {
					err = os.MkdirAll(filepath.Join(root, top), 0o755)
				}
				if err != nil {
					t.Fatal(err)
				}
				if !shared {
					t.Cleanup(func() { _ = os.RemoveAll(filepath.Join(root, top)) })
				}
				start(ctx, t, h, "python3", script(t, "log.py"), log, filepath.Join(heard, h))
				roots[h] = root
			}
			p := start(ctx, t, "host-a", "python3", script(t, "unix.py"), top, log, "$ASK")
			at := func(base string) string { return filepath.Join(roots[p.Host], top, base) }
			number := 0
			// In turn at all three listeners. Who has sent: an unnamed one is nil.
			answer := func(kept ...[3]*string) {
				t.Helper()
				number++
				ways := [][2]string{{"unix", at("stream")}, {"unixpacket", at("packets")}, {"unix", "@pagurus" + top}}
				way := ways[number%len(ways)]
				got := askUnix(t, p.Host, way[0], way[1])
				own, left, byName, named, ours := "own", "left", "left by name", "named", "own 0"
				if number > 1 {
					kept = append([][3]*string{{&left, nil, &ours}, {&byName, &named, &ours}}, kept...)
				}
				want := unixAnswer{
					Number: number,
					Names: []string{
						top + "/stream", "packets.new", fmt.Sprintf(`b'\x00pagurus%s'`, top), top + "/box", "removed", "", top + "/stream", "waits", "",
					},
					Peers: []string{top + "/stream", top + "/box", "removed", log},
					Kept:  append(kept, [3]*string{&own, nil, &ours}), Removed: "removed", Outer: "inner",
					OfName: []string{
						"waits answer 0 0", "waits answer 0 8", "waits answer 0 9", "waits answer 7 0", "waits answer 7 8", "waits answer 0 0",
						"said 6", "free", "Address already in use", "Address already in use", "Address already in use",
					},
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Fatalf("on %s (-want +got):\n%s", p.Host, diff)
				}
				for deadline := time.Now().Add(10 * time.Second); ; <-time.After(time.Millisecond) {
					lines, err := os.ReadFile(filepath.Join(heard, p.Host))
					if strings.HasSuffix("\n"+string(lines), fmt.Sprintf("\n%d\n", number)) {
						break
					}
					if time.Now().After(deadline) {
						t.Fatalf("number %d is not in the log of %s: %q, %v", number, p.Host, lines, err)
					}
				}
			}
			for range trips {
				for _, to := range []string{"host-b", "host-a"} {
					answer()
					first, second, sender, other := "first", "second", "sender", "other 0"
					send(t, "", at("box"), first)
					send(t, filepath.Join(t.TempDir(), sender), at("box"), second)
					if r, err := bed.Move(ctx, p, to, "--rehearse"); err != nil || r.State != migrate.StateRehearsed {
						t.Fatalf("rehearsing: %v, %s, %s", err, r.State, r.Stderr)
					}
					if err := within(t, to, func() error {
						names, err := os.ReadFile("/proc/thread-self/net/unix")
						if strings.Contains(string(names), top) {
							t.Errorf("names that are left on %s:\n%s", to, names)
						}
						return err
					}); err != nil {
						t.Fatal(err)
					}
					before := at("stream")
					moved(ctx, t, p, to)
					if _, err := os.Lstat(before); !shared && !errors.Is(err, fs.ErrNotExist) {
						t.Errorf("%s is still there: %v", before, err)
					}
					if info, err := os.Lstat(at("stream")); err != nil || info.Mode().Perm() != 0o606 {
						t.Errorf("%s: %v, %v", at("stream"), info, err)
					}
					answer([3]*string{&first, nil, &other}, [3]*string{&second, &sender, &other})
					for h, root := range roots {
						entries, err := os.ReadDir(filepath.Join(root, top))
						var names []string
						for _, e := range entries {
							names = append(names, e.Name())
						}
						if want := []string{"box", "packets", "stream", "waits"}; err != nil || !slices.Equal(names, want) && (shared || h == p.Host) || !shared && h != p.Host && len(names) > 0 {
							t.Errorf("on %s there are %v, %v", h, names, err)
						}
					}
				}
			}
		})
	}
}

// TestUnixPassed: descriptors that are on their way in unix sockets arrive on the new host, those
// that the program holds, too, as duplicates of what it holds.
func TestUnixPassed(t *testing.T) {
	need(t, "python3")
	ctx := limit(t, 3*time.Minute)
	top := t.TempDir()
	// Each host has a file of its own with this content.
	content := "/srv/local/passed-content"
	var root string
	for _, h := range []string{"host-b", "host-a"} {
		var err error
		if root, err = host(t, h).Root(); err == nil {
			err = os.WriteFile(filepath.Join(root, content), []byte("what it says"), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		at := filepath.Join(root, content)
		t.Cleanup(func() { _ = os.Remove(at) })
	}
	p := start(ctx, t, "host-a", "python3", script(t, "passing.py"), top, content, "$ASK")
	answer := func(again string) {
		t.Helper()
		got := askUnix(t, p.Host, "unix", filepath.Join(root, top, "stream")).Found
		want := []string{
			"plain", "held True 3", "again 5 5", "alone same 78 9 9 True", "event 1 1", "content what  what it says", "pipe in the pipe, more " + again + "x",
			"memory True True 0", "memory True True 0", "box 1 ['box', 'file', 'stream'] True True True True", "watch True", "timer True", "self True True",
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("on %s (-want +got):\n%s", p.Host, diff)
		}
	}
	for i := range trips {
		for _, to := range []string{"host-b", "host-a"} {
			if r, err := bed.Move(ctx, p, to, "--rehearse"); err != nil || r.State != migrate.StateRehearsed {
				t.Fatalf("rehearsing: %v, %s, %s", err, r.State, r.Stderr)
			}
			moved(ctx, t, p, to)
			var err error
			if root, err = host(t, to).Root(); err != nil {
				t.Fatal(err)
			}
			again := ""
			if i == 0 && to == "host-b" {
				again = "half"
			}
			answer(again)
		}
	}
}

// send sends a datagram to a socket by its file, from a name or none.
func send(t *testing.T, from, to, data string) {
	t.Helper()
	var local *net.UnixAddr
	if from != "" {
		local = &net.UnixAddr{Name: from, Net: "unixgram"}
	}
	conn, err := net.DialUnix("unixgram", local, &net.UnixAddr{Name: to, Net: "unixgram"})
	if err == nil {
		_, err = conn.Write([]byte(data))
		err = errors.Join(err, conn.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestUnixRefused: what is in the way of unix sockets is told before anything is touched.
func TestUnixRefused(t *testing.T) {
	need(t, "python3")
	ctx := limit(t, 3*time.Minute)
	const top, log = "/srv/local/refused", "/srv/local/log-refused"
	root := func(h string) string {
		root, err := host(t, h).Root()
		if err != nil {
			t.Fatal(err)
		}
		return root
	}
	if err := os.MkdirAll(filepath.Join(root("host-a"), top), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, h := range []string{"host-a", "host-b"} {
		dir := filepath.Join(root(h), top)
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
	}
	start(ctx, t, "host-a", "python3", script(t, "log.py"), log, filepath.Join(t.TempDir(), "heard"))
	p := start(ctx, t, "host-a", "python3", script(t, "unix.py"), top, log, "$ASK")
	refused := func(wanted map[string]migrate.Code) {
		t.Helper()
		r, err := bed.Move(ctx, p, "host-b")
		if err != nil || r.State != migrate.StateRefused {
			t.Fatalf("%v, %s, %s", err, r.State, r.Stderr)
		}
		for text, code := range wanted {
			if !slices.ContainsFunc(r.Blockers, func(b migrate.Finding) bool { return b.Code == code && strings.Contains(b.Detail, text) }) {
				t.Errorf("no %s with %q in %v", code, text, r.Blockers)
			}
		}
	}
	refused(map[string]migrate.Code{"its directory is not there": migrate.CodeFileMissing, log: migrate.CodeFileMissing})
	if err := os.MkdirAll(filepath.Join(root("host-b"), top), 0o755); err != nil {
		t.Fatal(err)
	}
	taken, err := net.Listen("unix", filepath.Join(root("host-b"), top, "stream"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = taken.Close() })
	if err := within(t, "host-b", func() error {
		for network, name := range map[string]string{"unix": "@pagurus" + top, "unixpacket": "@closed" + top} {
			abstract, err := net.Listen(network, name)
			if err != nil {
				return err
			}
			t.Cleanup(func() { _ = abstract.Close() })
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	refused(map[string]migrate.Code{top + "/stream": migrate.CodeAddressTaken, "@pagurus" + top: migrate.CodeAddressTaken, "@closed" + top: migrate.CodeAddressTaken})
	askUnix(t, "host-a", "unix", filepath.Join(root("host-a"), top, "stream"))
}
