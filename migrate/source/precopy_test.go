package source

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/migrate/image"
)

// midway makes a victim's kind that does something in the middle of a
// migration, in a thread of its own, and then lives on.
func midway(do func(dir string) error) func(*victimSelf) error {
	return func(v *victimSelf) error {
		runtime.LockOSThread()
		v.await("go")
		// It may be out of reach afterwards.
		done, err := os.Create(filepath.Join(v.dir, "done"))
		if err != nil {
			return err
		}
		if err := do(v.dir); err != nil {
			return err
		}
		if _, err := done.WriteString("done"); err != nil {
			return err
		}
		if err := done.Close(); err != nil {
			return err
		}
		v.await("stop")
		return nil
	}
}

// ofThread changes the ids of this thread alone.
func ofThread(nr, id uintptr) error {
	if _, _, errno := unix.RawSyscall(nr, id, id, id); errno != 0 {
		return errno
	}
	return nil
}

// changes are what a process can do during pre-copy so that it cannot move any
// more, and how it is told of.
var changes = []struct {
	kind string
	do   func(dir string) error
	code migrate.Code
	says string
}{
	{"sandbox", func(string) error { return restrict() }, migrate.CodeProcessState, "Landlock domain"},
	{"sandbox of another user", func(string) error {
		// Nothing was made for these ids to look at before.
		if err := errors.Join(ofThread(unix.SYS_SETRESGID, 1234), ofThread(unix.SYS_SETRESUID, 4321)); err != nil {
			return err
		}
		return restrict()
	}, migrate.CodeProcessState, "Landlock domain"},
	{"network namespace of a thread", func(string) error { return unix.Unshare(unix.CLONE_NEWNET) }, migrate.CodeNamespace, "net namespace"},
	{"IPC namespace of a thread", func(string) error { return unix.Unshare(unix.CLONE_NEWIPC) }, migrate.CodeNamespace, "ipc namespace"},
	{"host name of a thread", func(string) error { return unix.Unshare(unix.CLONE_NEWUTS) }, migrate.CodeNamespace, "uts namespace"},
	{"mounts of a thread", func(string) error { return unix.Unshare(unix.CLONE_NEWNS) }, migrate.CodeNamespace, "mnt namespace"},
	{"PID namespace for children", func(string) error { return unix.Unshare(unix.CLONE_NEWPID) }, migrate.CodeNamespace, "pid_for_children namespace"},
	{"joined namespace", func(string) error {
		// setns(2), into one that somebody else has made.
		made := make(chan error)
		var fd int
		go func() {
			runtime.LockOSThread() // and ends with its thread
			err := unix.Unshare(unix.CLONE_NEWUTS)
			if err == nil {
				fd, err = unix.Open(fmt.Sprintf("/proc/self/task/%d/ns/uts", unix.Gettid()), unix.O_RDONLY|unix.O_CLOEXEC, 0)
			}
			made <- err
		}()
		if err := <-made; err != nil {
			return err
		}
		return errors.Join(unix.Setns(fd, unix.CLONE_NEWUTS), unix.Close(fd))
	}, migrate.CodeNamespace, "uts namespace"},
	{"time namespace for children", func(string) error { return unix.Unshare(unix.CLONE_NEWTIME) }, migrate.CodeNamespace, "time namespace"},
	{"working directory of a thread", func(string) error {
		// Go's threads share their root until one says otherwise.
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return err
		}
		return unix.Chdir("/tmp")
	}, migrate.CodeProcessState, "a root, working directory and umask of its own"},
	{"descriptors of a thread", func(string) error { return unix.Unshare(unix.CLONE_FILES) }, migrate.CodeProcessState, "descriptors of its own"},
	{"socket", func(string) error {
		_, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_GENERIC)
		return err
	}, migrate.CodeDescriptor, "socket"},
	{"socket on its way", func(string) error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		return errors.Join(err, passAlone(fd))
	}, migrate.CodeDescriptor, "which no process has open"},
	{"epoll on its way", func(string) error {
		fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
		return errors.Join(err, passAlone(fd))
	}, migrate.CodeDescriptor, "a descriptor that is on its way in descriptor "},
	{"lock on its way", func(dir string) error {
		fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		return errors.Join(err, unix.Flock(fd, unix.LOCK_SH), passAlone(fd))
	}, migrate.CodeDescriptor, "holds a lock"},
	{"named pipe on its way", func(dir string) error {
		if err := unix.Mkfifo(dir+"/fifo", 0o600); err != nil {
			return err
		}
		fd, err := unix.Open(dir+"/fifo", unix.O_RDWR|unix.O_CLOEXEC, 0)
		return errors.Join(err, passAlone(fd))
	}, migrate.CodeDescriptor, "fifo"},
	{"named pipe", func(dir string) error {
		if err := unix.Mkfifo(dir+"/fifo", 0o600); err != nil {
			return err
		}
		_, err := unix.Open(dir+"/fifo", unix.O_RDWR|unix.O_CLOEXEC, 0)
		return err
	}, migrate.CodeDescriptor, "fifo"},
	{"directory that is gone", func(dir string) error {
		return errors.Join(os.Mkdir(dir+"/sub", 0o700), unix.Chdir(dir+"/sub"), os.Remove(dir+"/sub"))
	}, migrate.CodeFileGone, "cwd"},
}

// passAlone sends a descriptor into a socket pair that stays open, and closes it.
func passAlone(fd int) error {
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	return errors.Join(err, unix.Sendmsg(ends[0], []byte("x"), unix.UnixRights(fd), nil, 0), unix.Close(fd))
}

func init() {
	victims["chroot"] = midway(func(dir string) error {
		// Below it the victim finds its directory by the same name.
		return errors.Join(os.MkdirAll(dir+"/root"+dir, 0o700), unix.Chroot(dir+"/root"), unix.Chdir("/"))
	})
	victims["reader"] = midway(func(dir string) error {
		if err := os.WriteFile(dir+"/opened", []byte("content"), 0o600); err != nil {
			return err
		}
		for _, flags := range []int{unix.O_RDONLY, unix.O_PATH} {
			if _, err := unix.Open(dir+"/opened", flags|unix.O_CLOEXEC, 0); err != nil {
				return err
			}
		}
		return nil
	})
	for _, c := range changes {
		victims[c.kind] = midway(c.do)
	}
}

// What a file has in it is known of those that were opened while the memory was
// copied, too, and of those that were open before: the destination compares it.
func TestOpenFilesAreSummedUp(t *testing.T) {
	h := newHost(t)
	v := startVictim(t, "reader")
	path := filepath.Join(v.dir, "opened")
	want := sha256.Sum256([]byte("content"))
	check := func(m *image.Image) {
		t.Helper()
		found := 0
		for i := range m.Files {
			if f := &m.Files[i]; f.Path == path {
				found++
				if !bytes.Equal(f.Identity.Digest, want[:]) {
					t.Errorf("%s has the digest %x", f.Kind, f.Identity.Digest)
				}
			}
		}
		if found != 2 {
			t.Errorf("it is there %d times", found)
		}
	}
	m := start(t, h, v.pid, migrate.Options{})
	r := newReplica()
	r.onRound = func(n uint32) {
		if n == 0 {
			v.order("go")
			v.awaitDone()
		}
	}
	if err := m.Run(t.Context(), r.connect(t), &recorder{}); err != nil {
		t.Fatal(err)
	}
	check(m.image)
	if _, err := m.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	in, err := newHost(t).Inspect(t.Context(), inspection(v.pid))
	if err != nil {
		t.Fatal(err)
	}
	check(in.Inventory)
	v.finish()
}

// What stands in the way of a migration ends it too if it comes up only while
// the memory is copied. The process goes on.
func TestBlockedSinceThen(t *testing.T) {
	for _, c := range changes {
		t.Run(c.kind, func(t *testing.T) {
			h := newHost(t)
			v := startVictim(t, c.kind)
			in, err := h.Inspect(t.Context(), inspection(v.pid))
			if err != nil || len(in.Blockers) > 0 {
				t.Fatalf("before: %v, %v", in, err)
			}
			m := start(t, h, v.pid, migrate.Options{})
			r, events := newReplica(), &recorder{}
			r.onRound = func(n uint32) {
				if n == 0 {
					v.order("go")
					v.awaitDone()
				}
			}
			err = m.Run(t.Context(), r.connect(t), events)
			blocked, ok := errors.AsType[*BlockedError](err)
			if !ok {
				t.Fatalf("run ends with %v", err)
			}
			if !slices.ContainsFunc(blocked.Blockers, func(b migrate.Finding) bool {
				return b.Code == c.code && strings.Contains(b.Detail, c.says)
			}) {
				t.Errorf("blocked by %v", blocked.Blockers)
			}
			t.Log(err)
			if events.frozen == 0 || len(events.promised) > 0 {
				t.Errorf("%d times frozen, %d promises", events.frozen, len(events.promised))
			}
			if resumed, err := m.Resume(t.Context()); err != nil || resumed.KilledAtSource || resumed.Lost != "" {
				t.Errorf("resumed: %+v, %v", resumed, err)
			}
			v.finish()
		})
	}
}

// A root that was changed while the memory was copied moves.
func TestRootChanged(t *testing.T) {
	h := newHost(t)
	v := startVictim(t, "chroot")
	m := start(t, h, v.pid, migrate.Options{})
	root := filepath.Join(v.dir, "root")
	r := newReplica()
	r.onRound = func(n uint32) {
		if n == 0 {
			v.order("go")
			v.awaitDone()
			v.dir = filepath.Join(root, v.dir)
		}
	}
	if err := m.Run(t.Context(), r.connect(t), &recorder{}); err != nil {
		t.Fatal(err)
	}
	if p := r.image.Processes[0]; p.Root != root || p.Cwd != root {
		t.Errorf("root %s and working directory %s instead of %s", p.Root, p.Cwd, root)
	}
	if _, err := m.Resume(t.Context()); err != nil {
		t.Error(err)
	}
	v.finish()
}
