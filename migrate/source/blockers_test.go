package source

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate"
)

// holder is what every program of TestBlockers begins and ends with: it says
// that it is ready on descriptor 3, closes that, and exits with 42 when it is told to.
const holder = `
import ctypes, fcntl, mmap, os, signal, socket, struct
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = libc.shmat.restype = ctypes.c_void_p
def must(result):
    assert result != -1, os.strerror(ctypes.get_errno())
    return result
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
os.closerange(5, 4096) # what whoever runs the tests has left open
%s
os.write(3, b"ready")
os.close(3)
signal.sigwait({signal.SIGUSR1})
os._exit(42)
`

// outsidePipe gives a program the writing end of a pipe, as descriptor 4.
// Another process has the other end: what the agent holds does not count.
func outsidePipe(t *testing.T, c *exec.Cmd) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	reader := exec.Command("cat")
	reader.Stdin = r
	err = reader.Start()
	r.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		w.Close()
		_ = reader.Process.Kill()
		_ = reader.Wait()
	})
	c.ExtraFiles = append(c.ExtraFiles, w)
}

// outsideSocket gives a program one end of a socket pair, as descriptor 4.
func outsideSocket(t *testing.T, c *exec.Cmd) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
	t.Cleanup(func() { ours.Close(); theirs.Close() })
	c.ExtraFiles = append(c.ExtraFiles, theirs)
}

func unshared(flags uintptr) func(*testing.T, *exec.Cmd) {
	return func(_ *testing.T, c *exec.Cmd) { c.SysProcAttr.Unshareflags = flags }
}

// TestBlockers has a program for each way in which something at the source
// stands in the way of a move. Each is named, with a hint, and the program goes
// on as if nothing had looked at it.
func TestBlockers(t *testing.T) {
	if _, err := exec.LookPath("python3"); err != nil {
		t.Fatal("python3 plays the process: ", err)
	}
	type blocker struct {
		code migrate.Code
		text string // what the detail has in it
	}
	for _, tt := range []struct {
		name    string
		prepare func(*testing.T, *exec.Cmd)
		program string
		want    []blocker
		warning string
	}{
		{"nothing", nil, ``, nil, ""},
		{"pipe from outside", outsidePipe, ``, []blocker{{migrate.CodeOutsideEnd, "descriptor 4, "}}, ""},
		{"socket pair from outside", outsideSocket, ``, []blocker{{migrate.CodeOutsideEnd, "descriptor 4 "}}, ""},
		{"signals to another process", nil, `a, b = socket.socketpair(); fcntl.fcntl(a, fcntl.F_SETOWN, os.getppid())`, []blocker{{migrate.CodeOutsideEnd, "sends signals to"}}, ""},
		{"network namespace", unshared(syscall.CLONE_NEWNET), ``, []blocker{{migrate.CodeNamespace, " net namespace "}}, ""},
		{"mounts", unshared(syscall.CLONE_NEWNS), ``, []blocker{{migrate.CodeNamespace, " mnt namespace "}}, ""},
		{"semaphores", unshared(syscall.CLONE_NEWIPC), ``, []blocker{{migrate.CodeNamespace, " ipc namespace "}}, ""},
		{"host name", unshared(syscall.CLONE_NEWUTS), ``, []blocker{{migrate.CodeNamespace, " uts namespace "}}, ""},
		{"shared directory", func(_ *testing.T, c *exec.Cmd) { c.SysProcAttr.Cloneflags = syscall.CLONE_FS }, ``, []blocker{{migrate.CodeSharedKernel, "with its parent"}}, ""},
		{"hugetlbfs", nil, `must(libc.mmap(None, 2 << 20, 3, 0x40000 | 0x4000 | 0x22, -1, 0))`, []blocker{{migrate.CodeMapping, "hugetlbfs"}}, ""},
		{"SysV memory", nil, `i = must(libc.shmget(0, 4096, 0o600)); must(libc.shmat(i, None, 0)); must(libc.shmctl(i, 0, None))`, []blocker{{migrate.CodeMapping, "SYSV"}}, ""},
		{"replaced file", nil, `f = open(os.environ["DIR"] + "/f", "w"); g = f.name + "2"; os.link(f.name, g); open(g + "3", "w").close(); os.replace(g + "3", f.name)`, []blocker{{migrate.CodeFileGone, "/f"}}, ""},
		{"lease", nil, `f = open(os.environ["DIR"] + "/f", "w"); r = open(f.name); f.close(); fcntl.fcntl(r, 1024, fcntl.F_RDLCK)`, []blocker{{migrate.CodeDescriptor, "lease"}}, ""},
		{"timer of another", nil, `must(libc.syscall(222, (~os.getppid() << 3) | 2, None, ctypes.byref(ctypes.c_int())))`, []blocker{{migrate.CodeOutsideEnd, "processor time of process"}}, ""},
		{"removed directory", nil, `d = os.environ["DIR"] + "/d"; os.mkdir(d); os.chdir(d); os.rmdir(d)`, []blocker{{migrate.CodeFileGone, "/d"}}, ""},
		{"internet socket", nil, `s = socket.socket()`, []blocker{{migrate.CodeDescriptor, "an IPv4 socket"}}, ""},
		{"file of the kernel's", nil, `m = open("/proc/self/mem", "rb"); i = open("/proc/meminfo")`, []blocker{{migrate.CodeDescriptor, "/mem"}}, ""},
		{"filtered socket pair", nil, `a, b = socket.socketpair(); f = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 100)); a.setsockopt(socket.SOL_SOCKET, 26, struct.pack("HxxxxxxQ", 1, ctypes.addressof(f)))`, []blocker{{migrate.CodeDescriptor, "with a filter"}}, ""},
		{"io_uring", nil, `must(libc.syscall(425, 4, ctypes.create_string_buffer(120)))`, []blocker{{migrate.CodeDescriptor, "io_uring"}}, ""},
		{"userfaultfd", nil, `must(libc.syscall(323, 1))`, []blocker{{migrate.CodeDescriptor, "userfaultfd"}}, ""},
		{"deadline", nil, `must(libc.syscall(314, 0, struct.pack("IIQiIQQQ", 48, 6, 0, 0, 0, 10**6, 10**8, 10**8), 0))`, []blocker{{migrate.CodeProcessState, "SCHED_DEADLINE"}}, ""},
		{"terminal", nil, `m, s = os.openpty(); fcntl.ioctl(s, 0x540E, 0)`, []blocker{{migrate.CodeProcessState, "controlling terminal"}, {migrate.CodeDescriptor, "descriptor "}}, ""},
		{
			"several", outsidePipe, `d = os.environ["DIR"] + "/d"; os.mkdir(d); os.chdir(d); os.rmdir(d); s = socket.socket()`,
			[]blocker{{migrate.CodeOutsideEnd, "descriptor 4, "}, {migrate.CodeFileGone, "/d"}, {migrate.CodeDescriptor, "an IPv4 socket"}},
			"",
		},
		{"watches", nil, `must(libc.inotify_add_watch(must(libc.inotify_init()), b"/tmp", 2))`, nil, "inotify"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := startHolder(t, tt.program, tt.prepare)
			in, err := newHost(t).Inspect(t.Context(), inspection(c.Process.Pid))
			if err != nil {
				t.Fatal(err)
			}
			for _, want := range tt.want {
				if !slices.ContainsFunc(in.Blockers, func(f migrate.Finding) bool { return f.Code == want.code && strings.Contains(f.Detail, want.text) }) {
					t.Errorf("no %s with %q in %v", want.code, want.text, in.Blockers)
				}
			}
			for _, f := range in.Blockers {
				if !slices.ContainsFunc(tt.want, func(want blocker) bool { return f.Code == want.code && strings.Contains(f.Detail, want.text) }) {
					t.Errorf("also: %v", f)
				}
				if f.Hint == "" {
					t.Errorf("no hint: %v", f)
				}
			}
			for _, f := range in.Warnings {
				if f.Code != migrate.CodeDegraded || !strings.Contains(f.Detail, tt.warning) || tt.warning == "" {
					t.Errorf("a warning: %v", f)
				}
			}
			if tt.warning != "" && len(in.Warnings) == 0 {
				t.Errorf("no warning of %q", tt.warning)
			}
			if err := c.Process.Signal(unix.SIGUSR1); err != nil {
				t.Fatal(err)
			}
			var exit *exec.ExitError
			if err := c.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 42 {
				t.Errorf("afterwards the process ends with %v", err)
			}
		})
	}
}

// startHolder starts a program and waits until it is ready.
func startHolder(t *testing.T, program string, prepare func(*testing.T, *exec.Cmd)) *exec.Cmd {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	c := exec.Command("python3", "-c", fmt.Sprintf(holder, program))
	c.Env = append(os.Environ(), "DIR="+t.TempDir())
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	c.ExtraFiles = []*os.File{w}
	if prepare != nil {
		prepare(t, c)
	}
	err = c.Start()
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if c.ProcessState == nil {
			_ = c.Process.Kill()
			_ = c.Wait()
		}
	})
	if said, err := io.ReadAll(r); err != nil || string(said) != "ready" {
		t.Fatalf("the program says %q, %v", said, err)
	}
	return c
}
