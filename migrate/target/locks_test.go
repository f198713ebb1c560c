package target_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/migrate/source"
)

// lockProgram holds one lock on a file.
const lockProgram = `
import fcntl, os, struct, sys, time
dir, kind, write = sys.argv[1], sys.argv[2], sys.argv[3] == "write"
f = open(dir + "/file", "r+")
if kind == "flock": fcntl.flock(f, (fcntl.LOCK_EX if write else fcntl.LOCK_SH) | fcntl.LOCK_NB)
else:
    command = fcntl.F_SETLK if kind == "POSIX" else 37 # F_OFD_SETLK
    fcntl.fcntl(f, command, struct.pack("hhqqi4x", fcntl.F_WRLCK if write else fcntl.F_RDLCK, 0, 100, 50, 0))
open(dir + "/ready", "w").close()
time.sleep(1000)
`

// A lock that somebody takes in the moment in which it is free ends the
// migration: the destination names it, and the process has it back at the source
// once whoever has taken it lets go.
func TestLockTaken(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("no python3")
	}
	for _, kind := range []string{"POSIX", "OFD", "flock"} {
		for _, how := range []string{"read", "write"} {
			t.Run(kind+" "+how, func(t *testing.T) {
				host := newSource(t)
				dir := t.TempDir()
				path := filepath.Join(dir, "file")
				if err := os.WriteFile(path, nil, 0o600); err != nil {
					t.Fatal(err)
				}
				pid := startProgram(t, filepath.Join(dir, "log"), python, "-c", lockProgram, dir, kind, how)
				await(t, func() bool { return fileExists(filepath.Join(dir, "ready")) })
				rival, err := os.OpenFile(path, os.O_RDWR, 0)
				if err != nil {
					t.Fatal(err)
				}
				defer rival.Close()
				take := func() error {
					if kind == "flock" {
						return unix.Flock(int(rival.Fd()), unix.LOCK_EX|unix.LOCK_NB)
					}
					// The last byte of it is enough.
					return unix.FcntlFlock(rival.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Start: 149, Len: 9})
				}
				if err := take(); err == nil {
					t.Fatal("the program does not hold its lock")
				}

				d, m, wire := beginMove(t, host, pid)
				wire.first = func() {
					if err := take(); err != nil {
						t.Errorf("taking the lock in the freeze: %v", err)
					}
				}
				runErr := m.Run(t.Context(), wire, events{func() { t.Error("promised") }})
				wire.Close()
				there := d.answer()
				where := " of bytes 100 to 149"
				if kind == "flock" {
					where = ""
				}
				want := fmt.Sprintf("%s %s lock on %s%s: another process holds it", kind, how, path, where)
				if runErr == nil || !strings.Contains(runErr.Error(), want) || !strings.Contains(there.Error, want) {
					t.Errorf("it ends with %v (the destination: %s), which should say: %s", runErr, there.Error, want)
				}
				rival.Close() // and the lock goes with it
				resumed, err := m.Resume(context.WithoutCancel(t.Context()))
				if err != nil || resumed.Lost != "" || resumed.Downtime == 0 {
					t.Errorf("resumed: %+v, %v", resumed, err)
				}
				if a := d.do(order{Do: "release"}); a.Error != "" {
					t.Error("releasing:", a.Error)
				}
				if rival, err = os.OpenFile(path, os.O_RDWR, 0); err != nil {
					t.Fatal(err)
				}
				defer rival.Close()
				if take() == nil {
					t.Error("the program has not got its lock back")
				}
				// Nothing is in the way any more.
				move(t, host, pid, migrate.Options{}.WithDefaults())
				if take() == nil {
					t.Error("the program has not taken its lock along")
				}
			})
		}
	}
}

func fileExists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// A freezeWire is a page connection that tells when the source sends something
// for the first time after its locks were released.
type freezeWire struct {
	net.Conn
	released bool
	first    func()
}

func (w *freezeWire) Write(b []byte) (int, error) {
	if w.released && w.first != nil {
		w.first()
		w.first = nil
	}
	return w.Conn.Write(b)
}

// beginMove prepares a destination and a migration to it, to be run over the
// connection that it returns. The destination's answer is still to come.
func beginMove(t *testing.T, host *source.Host, pid int) (*destination, *source.Migration, *freezeWire) {
	t.Helper()
	d := newDestination(t)
	options := migrate.Options{}.WithDefaults()
	d.reserve(inventoryOf(t, host, pid, options), options)
	d.send(order{Do: "receive"})
	wire := &freezeWire{Conn: d.pages}
	m, err := host.Start(t.Context(), source.Config{
		Migration: fmt.Sprintf("test-%d", pid), Epoch: 1, PID: pid, Options: options, Token: []byte("token"),
		Save: func(p source.Plan) error {
			wire.released = p.Locks != nil
			return nil
		},
	})
	if err != nil {
		t.Fatal("starting:", err)
	}
	return d, m, wire
}
