package source

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate"
)

// A fileLock is a lock of any kind and how to take it.
type fileLock struct {
	name  string // of its file, too
	kind  string // POSIX, OFD or flock
	write bool
	start int64
	bytes int64 // 0: to the end
}

// heldLocks are what the victim "locked" holds. The parts of one file are
// locks of their own.
var heldLocks = []fileLock{
	{"posix", "POSIX", true, 10, 20},
	{"posix", "POSIX", false, 100, 1},
	{"posix", "POSIX", false, 4096, 0},
	{"ofd", "OFD", true, 0, 5},
	{"ofd", "OFD", false, 7, 1 << 40},
	{"flock-exclusive", "flock", true, 0, 0},
	{"flock-shared", "flock", false, 0, 0},
}

// String is the lock as a user is told of it.
func (l fileLock) String() string {
	how := "read"
	if l.write {
		how = "write"
	}
	return fmt.Sprintf("%s %s lock", l.kind, how)
}

// where is the part of the file as a user is told of it.
func (l fileLock) where() string {
	switch {
	case l.kind == "flock":
		return ""
	case l.bytes == 0:
		return fmt.Sprintf(" from byte %d on", l.start)
	}
	return fmt.Sprintf(" of bytes %d to %d", l.start, l.start+l.bytes-1)
}

// set takes or releases the lock by an open file, and does not wait for it.
func (l fileLock) set(file *os.File, release bool) error {
	if l.kind == "flock" {
		how := unix.LOCK_SH
		if l.write {
			how = unix.LOCK_EX
		}
		if release {
			how = unix.LOCK_UN
		}
		return unix.Flock(int(file.Fd()), how|unix.LOCK_NB)
	}
	lock := unix.Flock_t{Type: unix.F_RDLCK, Start: l.start, Len: l.bytes}
	if l.write {
		lock.Type = unix.F_WRLCK
	}
	if release {
		lock.Type = unix.F_UNLCK
	}
	command := unix.F_SETLK
	if l.kind == "OFD" {
		command = unix.F_OFD_SETLK
	}
	return unix.FcntlFlock(file.Fd(), command, &lock)
}

func (l fileLock) open(dir string) (*os.File, error) {
	return os.OpenFile(filepath.Join(dir, l.name), os.O_RDWR|os.O_CREATE, 0o600)
}

// holdLocks holds locks of all kinds.
func holdLocks(v *victimSelf) error {
	files := make(map[string]*os.File)
	for _, l := range heldLocks {
		if files[l.name] == nil {
			file, err := l.open(v.dir)
			if err != nil {
				return err
			}
			files[l.name] = file
		}
		if err := l.set(files[l.name], false); err != nil {
			return fmt.Errorf("taking the %s%s: %w", l, l.where(), err)
		}
	}
	v.ready()
	v.await("stop")
	for _, file := range files {
		if err := file.Close(); err != nil {
			return err
		}
	}
	return nil
}

// A rival wants what another has locked, for itself alone.
type rival struct {
	fileLock
	t    *testing.T
	file *os.File
}

func newRival(t *testing.T, v *victim, of fileLock) *rival {
	t.Helper()
	file, err := of.open(v.dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	of.write = true
	// Record locks of one process never conflict, and all rivals are this one.
	if of.kind == "POSIX" {
		of.kind = "OFD"
	}
	return &rival{of, t, file}
}

// take reports whether the lock could be had.
func (r *rival) take() bool {
	r.t.Helper()
	err := r.set(r.file, false)
	if err != nil && !errors.Is(err, unix.EAGAIN) {
		r.t.Error(err)
	}
	return err == nil
}

func (r *rival) release() {
	r.t.Helper()
	if err := r.set(r.file, true); err != nil {
		r.t.Error(err)
	}
}

// awaitBack waits until the victim, or another, has the lock.
func (r *rival) awaitBack() {
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for {
		lock := unix.Flock_t{Type: unix.F_WRLCK, Start: r.start, Len: r.bytes}
		if err := unix.FcntlFlock(r.file.Fd(), unix.F_OFD_GETLK, &lock); err != nil {
			r.t.Error(err)
			return
		}
		if lock.Type != unix.F_UNLCK {
			return
		}
		<-ticker.C
	}
}

// Locks are free for the destination while the process is frozen, and its own
// again afterwards, even if somebody lets go of them only when the source has
// failed to take them back.
func TestLocksComeBack(t *testing.T) {
	h := newHost(t)
	v := startVictim(t, "locked")
	rivals := make([]*rival, len(heldLocks))
	for i, l := range heldLocks {
		if rivals[i] = newRival(t, v, l); rivals[i].take() {
			t.Fatalf("the victim does not hold its %s%s", l, l.where())
		}
	}
	m := start(t, h, v.pid, migrate.Options{Rehearse: true})
	if err := m.Run(t.Context(), newReplica().connect(t), &recorder{}); err != nil {
		t.Fatal(err)
	}
	for _, r := range rivals {
		if !r.take() {
			t.Fatalf("%s%s is not free for the destination", r, r.where())
		}
	}
	rivals[0].release()
	var letting sync.WaitGroup
	letting.Go(func() {
		rivals[0].awaitBack() // it has asked for the others too
		for _, r := range rivals[1:] {
			r.release()
		}
	})
	resumed, err := m.Resume(t.Context())
	letting.Wait()
	if err != nil || resumed.Lost != "" {
		t.Errorf("%+v, %v", resumed, err)
	}
	for i, r := range rivals {
		if r.take() {
			t.Errorf("the process has not got its %s%s back", heldLocks[i], heldLocks[i].where())
		}
	}
	v.finish()
}

// A lock that somebody keeps is lost: the process goes on, has all others back,
// and whoever reads what came of the migration is told.
func TestLocksLost(t *testing.T) {
	for parity := range 2 {
		t.Run(fmt.Sprint(parity), func(t *testing.T) {
			t.Parallel() // each waits until the source gives up
			h := newHost(t)
			v := startVictim(t, "locked")
			was := look(t, h, v.pid)
			m := start(t, h, v.pid, migrate.Options{})
			if err := m.Run(t.Context(), newReplica().connect(t), &recorder{}); err != nil {
				t.Fatal(err)
			}
			var want []string
			for i, l := range heldLocks {
				if i%2 != parity {
					continue
				}
				if !newRival(t, v, l).take() {
					t.Fatalf("%s%s is not free", l, l.where())
				}
				want = append(want, fmt.Sprintf("%s on %s%s: another process holds it", l, filepath.Join(v.dir, l.name), l.where()))
			}
			resumed, err := m.Resume(t.Context())
			if err != nil {
				t.Error(err)
			}
			if diff := cmp.Diff("file locks lost: "+strings.Join(want, "; "), resumed.Lost); diff != "" {
				t.Error(diff)
			}
			if resumed.KilledAtSource || resumed.Downtime < lockFor {
				t.Errorf("%+v", resumed)
			}
			for i, l := range heldLocks {
				if i%2 != parity && newRival(t, v, l).take() {
					t.Errorf("%s%s has not come back", l, l.where())
				}
			}
			was.untouched(t, h, v.pid)
			v.finish()
		})
	}
}
