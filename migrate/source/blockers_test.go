package source

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/migrate/procfs"
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

// waitingListener tells a program of a unix socket where nobody accepts.
func waitingListener(t *testing.T, c *exec.Cmd) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "waits")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	c.Env = append(c.Environ(), "WAITS="+path)
}

// listening makes a TCP listener of ours.
func listening(t *testing.T, c *exec.Cmd) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	c.Env = append(c.Environ(), fmt.Sprintf("LISTENS=%d", l.Addr().(*net.TCPAddr).Port))
}

// listeningAbstract accepts connections of a unix socket with an abstract name.
func listeningAbstract(t *testing.T, c *exec.Cmd) {
	t.Helper()
	l, err := net.Listen("unix", "@pagurus-blockers-"+rand.Text())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for conn, err := l.Accept(); err == nil; conn, err = l.Accept() {
			t.Cleanup(func() { _ = conn.Close() })
		}
	}()
	c.Env = append(c.Environ(), "LISTENS="+l.Addr().String())
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

// ports skips a test where the kernel was built without I/O ports for programs.
// Of no ports at all it says that this is invalid.
func ports(t *testing.T, _ *exec.Cmd) {
	if _, _, errno := unix.Syscall(unix.SYS_IOPERM, 0, 0, 0); errors.Is(errno, unix.ENOSYS) {
		t.Skip("this kernel has no ioperm(2)")
	}
}

// opens skips a test where the kernel was built without such sockets.
func opens(family, kind, protocol int) func(*testing.T, *exec.Cmd) {
	return func(t *testing.T, _ *exec.Cmd) {
		t.Helper()
		fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, protocol)
		if err != nil {
			t.Skipf("this kernel has no sockets of family %d, type %d, protocol %d: %v", family, kind, protocol, err)
		}
		unix.Close(fd)
	}
}

// kernelTLS skips a test where the kernel was built without it: that is told before a
// connection is missed.
func kernelTLS(t *testing.T, _ *exec.Cmd) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptString(fd, unix.SOL_TCP, unix.TCP_ULP, "tls"); errors.Is(err, unix.ENOENT) {
		t.Skip("this kernel has no TLS")
	}
}

// withProgram makes a socket with a filter of eBPF that lets everything in: r0 = -1; exit.
func withProgram(socket string) string {
	return fmt.Sprintf(`s = %s; i = ctypes.create_string_buffer(struct.pack("BBhi" * 2, 0xb7, 0, 0, -1, 0x95, 0, 0, 0)); l = ctypes.create_string_buffer(b"GPL"); p = must(libc.syscall(321, 5, struct.pack("IIQQ", 1, 2, ctypes.addressof(i), ctypes.addressof(l)).ljust(48, b"\0"), 48)); s.setsockopt(socket.SOL_SOCKET, 50, p); os.close(p)`, socket)
}

// supervised installs a seccomp filter that lets everything pass but sysfs(2),
// which nobody calls: of that it asks a supervisor.
func supervised(flags int) string {
	return fmt.Sprintf(`f = ctypes.create_string_buffer(struct.pack("HBBI" * 4, 0x20, 0, 0, 0, 0x15, 0, 1, 139, 6, 0, 0, 0x7fc00000, 6, 0, 0, 0x7fff0000)); must(libc.syscall(317, 1, %d, struct.pack("HxxxxxxQ", 4, ctypes.addressof(f))))`, flags)
}

// leftBehind forks a process that is nobody's child here and ends with the
// program. What the program shares at this point, it has too.
const leftBehind = `
import select
program = os.getpid()
if os.fork() == 0:
    if os.fork() == 0:
        os.close(3)
        select.select([os.pidfd_open(program)], [], [])
    os._exit(0)
os.wait()
`

// leftBehindWithout is leftBehind with a process that does something first.
func leftBehindWithout(do string) string {
	return strings.Replace(leftBehind, "os.close(3)", "os.close(3); "+do, 1)
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
		{"pipe from outside", outsidePipe, ``, []blocker{{migrate.CodeOutsideEnd, "descriptor 4 of process "}}, ""},
		{"socket pair from outside", outsideSocket, ``, []blocker{{migrate.CodeOutsideEnd, "descriptor 4 "}}, ""},
		{"signals to another process", nil, `a, b = socket.socketpair(); fcntl.fcntl(a, fcntl.F_SETOWN, os.getppid())`, []blocker{{migrate.CodeOutsideEnd, "sends signals to"}}, ""},
		{"network namespace", unshared(syscall.CLONE_NEWNET), ``, []blocker{{migrate.CodeNamespace, " net namespace "}}, ""},
		{"mounts", unshared(syscall.CLONE_NEWNS), ``, []blocker{{migrate.CodeNamespace, " mnt namespace "}}, ""},
		{"semaphores", unshared(syscall.CLONE_NEWIPC), ``, []blocker{{migrate.CodeNamespace, " ipc namespace "}}, ""},
		{"host name", unshared(syscall.CLONE_NEWUTS), ``, []blocker{{migrate.CodeNamespace, " uts namespace "}}, ""},
		{"shared directory", func(_ *testing.T, c *exec.Cmd) { c.SysProcAttr.Cloneflags = syscall.CLONE_FS }, ``, []blocker{{migrate.CodeSharedKernel, "shares its working directory with process"}}, ""},
		{"hugetlbfs", nil, `must(libc.mmap(None, 2 << 20, 3, 0x40000 | 0x4000 | 0x22, -1, 0))`, []blocker{{migrate.CodeMapping, "hugetlbfs"}}, ""},
		{"SysV memory", nil, `i = must(libc.shmget(0, 4096, 0o600)); must(libc.shmat(i, None, 0)); must(libc.shmctl(i, 0, None))`, []blocker{{migrate.CodeMapping, "SYSV"}}, ""},
		{"replaced file", nil, `f = open(os.environ["DIR"] + "/f", "w"); g = f.name + "2"; os.link(f.name, g); open(g + "3", "w").close(); os.replace(g + "3", f.name)`, []blocker{{migrate.CodeFileGone, "/f"}}, ""},
		{"lease", nil, `f = open(os.environ["DIR"] + "/f", "w"); r = open(f.name); f.close(); fcntl.fcntl(r, 1024, fcntl.F_RDLCK)`, []blocker{{migrate.CodeDescriptor, "lease"}}, ""},
		{"timer of another", nil, `must(libc.syscall(222, (~os.getppid() << 3) | 2, None, ctypes.byref(ctypes.c_int())))`, []blocker{{migrate.CodeOutsideEnd, "processor time of process"}}, ""},
		{"removed directory", nil, `d = os.environ["DIR"] + "/d"; os.mkdir(d); os.chdir(d); os.rmdir(d)`, []blocker{{migrate.CodeFileGone, "/d"}}, ""},
		{"raw and packet sockets", nil, `s = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6); p = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)`, nil, "of 2 raw, ping or packet sockets"},
		{"raw socket with a program", nil, withProgram(`socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)`), []blocker{{migrate.CodeDescriptor, "SO_ATTACH_BPF"}}, ""},
		{"packet socket with a program", nil, withProgram(`socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)`), []blocker{{migrate.CodeDescriptor, "SO_ATTACH_BPF"}}, ""},
		{"packet socket with a ring", nil, `s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0); s.setsockopt(263, 5, struct.pack("IIII", 4096, 1, 2048, 2))`, []blocker{{migrate.CodeDescriptor, "PACKET_RX_RING"}}, ""},
		{"packet socket with a ring, mapped", nil, `s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0); s.setsockopt(263, 5, struct.pack("IIII", 4096, 1, 2048, 2)); m = mmap.mmap(s.fileno(), 4096)`, []blocker{{migrate.CodeDescriptor, "PACKET_RX_RING"}, {migrate.CodeMapping, "socket:["}}, ""},
		{"packet socket of a group", nil, `s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0); s.bind(("lo", 0x88b5)); s.setsockopt(263, 18, os.getpid() & 0xffff)`, []blocker{{migrate.CodeDescriptor, "PACKET_FANOUT"}}, ""},
		{"vsock", opens(unix.AF_VSOCK, unix.SOCK_STREAM, 0), `s = socket.socket(40, socket.SOCK_STREAM)`, []blocker{{migrate.CodeDescriptor, "a vsock socket"}}, ""},
		{"XDP", opens(unix.AF_XDP, unix.SOCK_RAW, 0), `s = socket.socket(44, socket.SOCK_RAW)`, []blocker{{migrate.CodeDescriptor, "an XDP socket"}}, ""},
		{"UDP-Lite", opens(unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_UDPLITE), `s = socket.socket(2, socket.SOCK_DGRAM, 136)`, []blocker{{migrate.CodeDescriptor, "a UDP-Lite socket"}}, ""},
		{"SCTP", opens(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_SCTP), `s = socket.socket(2, socket.SOCK_STREAM, 132)`, []blocker{{migrate.CodeDescriptor, "an SCTP socket"}}, ""},
		{"crypto API", opens(unix.AF_ALG, unix.SOCK_SEQPACKET, 0), `s = socket.socket(38, socket.SOCK_SEQPACKET)`, []blocker{{migrate.CodeDescriptor, "a socket of the crypto API"}}, ""},
		{"several paths", opens(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP), `s = socket.socket(2, socket.SOCK_STREAM, 262); s.bind(("127.0.0.1", 0)); s.listen(); c = socket.socket(2, socket.SOCK_STREAM, 262); c.connect(s.getsockname()); a, _ = s.accept(); s.close(); a.setblocking(False)`, []blocker{{migrate.CodeDescriptor, "(MPTCP)"}}, ""},
		{"kTLS", kernelTLS, `s = socket.create_server(("127.0.0.1", 0)); c = socket.create_connection(s.getsockname()); a, _ = s.accept(); c.setsockopt(6, 31, b"tls")`, []blocker{{migrate.CodeDescriptor, "tls"}}, ""},
		{"netlink socket", nil, `s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 16)`, []blocker{{migrate.CodeDescriptor, "a netlink socket of protocol 16"}}, ""},
		{"connection of a unix socket", nil, `a = socket.socket(socket.AF_UNIX); a.bind("\0blocker"); a.listen(); b = socket.socket(socket.AF_UNIX); b.connect("\0blocker"); c = a.accept()`, nil, ""},
		{"connection of a unix socket, its listener closed", nil, `a = socket.socket(socket.AF_UNIX); a.bind("\0blocker2"); a.listen(); b = socket.socket(socket.AF_UNIX); os.seteuid(1); b.connect("\0blocker2"); os.seteuid(0); c = a.accept(); a.close()`, nil, ""},
		{"connection from elsewhere to an abstract name", listeningAbstract, `a = socket.socket(socket.AF_UNIX); a.connect(os.environ["LISTENS"].replace("@", "\0"))`, []blocker{{migrate.CodeOutsideEnd, "is connected to a socket of another process"}}, ""},
		{"connection that nobody accepts", waitingListener, `a = socket.socket(socket.AF_UNIX); a.connect(os.environ["WAITS"])`, []blocker{{migrate.CodeOutsideEnd, "has not accepted yet"}}, ""},
		{"UDP socket for IPsec", nil, `s = socket.socket(type=socket.SOCK_DGRAM); s.setsockopt(17, 100, 2)`, []blocker{{migrate.CodeDescriptor, "UDP_ENCAP"}}, ""},
		{"connection", listening, `c = socket.create_connection(("127.0.0.1", int(os.environ["LISTENS"])))`, []blocker{{migrate.CodeDescriptor, "whose other end is on this host"}}, ""},
		{"connection with itself", nil, `s = socket.create_server(("127.0.0.1", 0)); c = socket.create_connection(s.getsockname()); a, _ = s.accept()`, nil, ""},
		{"connection that has ended", nil, `s = socket.create_server(("127.0.0.1", 0)); c = socket.create_connection(s.getsockname()); a, _ = s.accept(); a.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)); a.close(); s.close()`, []blocker{{migrate.CodeDescriptor, "whose connection has ended"}}, ""},
		{"file of the kernel's", nil, `m = open("/proc/self/mem", "rb"); i = open("/proc/meminfo")`, []blocker{{migrate.CodeDescriptor, "/mem"}}, ""},
		{"filtered socket pair", nil, `a, b = socket.socketpair(); f = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 100)); a.setsockopt(socket.SOL_SOCKET, 26, struct.pack("HxxxxxxQ", 1, ctypes.addressof(f)))`, []blocker{{migrate.CodeDescriptor, "with a filter"}}, ""},
		{"io_uring", nil, `must(libc.syscall(425, 4, ctypes.create_string_buffer(120)))`, []blocker{{migrate.CodeDescriptor, "io_uring"}}, ""},
		{"userfaultfd", nil, `must(libc.syscall(323, 1))`, []blocker{{migrate.CodeDescriptor, "userfaultfd"}}, ""},
		{"ports", ports, `must(libc.ioperm(0x80, 1, 1))`, []blocker{{migrate.CodeProcessState, "I/O ports"}}, ""},
		{"supervised calls", nil, supervised(0), []blocker{{migrate.CodeProcessState, "SECCOMP_RET_USER_NOTIF"}}, ""},
		{"supervisor of its own", nil, supervised(8), []blocker{{migrate.CodeProcessState, "SECCOMP_RET_USER_NOTIF"}, {migrate.CodeDescriptor, "seccomp notify"}}, ""},
		{"common memory", nil, `must(libc.mmap(None, 4096, 3, 0x21, -1, 0))` + leftBehind, []blocker{{migrate.CodeOutsideEnd, "is in the hands of process"}}, ""},
		{"memory, a descriptor outside", nil, `f = must(libc.memfd_create(b"m", 0)); os.ftruncate(f, 4096); m = must(libc.mmap(None, 4096, 3, 1, f, 0))` + leftBehindWithout("libc.munmap(ctypes.c_void_p(m), 4096)") + `os.close(f)`, []blocker{{migrate.CodeOutsideEnd, "is in the hands of process"}}, ""},
		{"descriptor, memory outside", nil, `f = must(libc.memfd_create(b"m", 0)); os.ftruncate(f, 4096); m = must(libc.mmap(None, 4096, 3, 1, f, 0))` + leftBehindWithout("os.close(f)") + `must(libc.munmap(ctypes.c_void_p(m), 4096))`, []blocker{{migrate.CodeOutsideEnd, "is of memory that process"}}, ""},
		{"common memfd", nil, `f = must(libc.memfd_create(b"m", 0)); os.ftruncate(f, 4096); must(libc.mmap(None, 4096, 3, 1, f, 0)); os.close(f)` + leftBehind, []blocker{{migrate.CodeOutsideEnd, "memory /memfd:m (deleted) at "}}, ""},
		{"eventfd from outside", nil, `e = os.eventfd(0)` + leftBehind, []blocker{{migrate.CodeOutsideEnd, "is also held by process"}}, ""},
		{"memfd from outside", nil, `f = must(libc.memfd_create(b"m", 0)); os.ftruncate(f, 4096)` + leftBehind, []blocker{{migrate.CodeOutsideEnd, "is also held by process"}}, ""},
		{"deadline", nil, `must(libc.syscall(314, 0, struct.pack("IIQiIQQQ", 48, 6, 0, 0, 0, 10**6, 10**8, 10**8), 0))`, []blocker{{migrate.CodeProcessState, "SCHED_DEADLINE"}}, ""},
		{"terminal", nil, `m, s = os.openpty(); fcntl.ioctl(s, 0x540E, 0)`, []blocker{{migrate.CodeProcessState, "controlling terminal"}, {migrate.CodeDescriptor, "descriptor "}}, ""},
		{
			"several", outsidePipe, `d = os.environ["DIR"] + "/d"; os.mkdir(d); os.chdir(d); os.rmdir(d); s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 16)`,
			[]blocker{{migrate.CodeOutsideEnd, "descriptor 4 of process "}, {migrate.CodeFileGone, "/d"}, {migrate.CodeDescriptor, "a netlink socket of protocol 16"}},
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
				if f.Code == migrate.CodeRecreated && tt.warning == "" {
					continue
				}
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

// TestSharedWithParent has programs that clone(2) has left something in common
// with their parents. It is descriptors in any case: the end of the pipe that
// they are ready on is to be closed for both.
func TestShared(t *testing.T) {
	for _, tt := range []struct {
		name  string
		flags int
		want  []string
	}{
		{"descriptors", 0, []string{"its descriptors"}},
		{"directory", unix.CLONE_FS, []string{"its descriptors", "its working directory"}},
		{"memory", unix.CLONE_VM, []string{"its descriptors", "its memory"}},
		{"handlers", unix.CLONE_VM | unix.CLONE_SIGHAND, []string{"its descriptors", "its memory", "its signal handlers"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			// The child is in sigsuspend(2) on a stack of its own and runs nothing of
			// Python's, which may be in the same memory. The signal has it exit.
			c := startHolder(t, fmt.Sprintf(`
libc.signal(signal.SIGUSR1, libc._exit)
stack = libc.mmap(None, 1 << 16, 3, 0x22, -1, 0) + (1 << 16)
none = ctypes.create_string_buffer(128)
child = must(libc.clone(libc.sigsuspend, ctypes.c_void_p(stack), %d, none))
os.write(3, b"ready")
os.close(3)
os._exit(42 if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == signal.SIGUSR1 else 1)
`, tt.flags|unix.CLONE_FILES|int(unix.SIGCHLD)), nil)
			children, err := procfs.Process{PID: c.Process.Pid}.Children()
			if err != nil || len(children) != 1 {
				t.Fatalf("it has the children %v, %v", children, err)
			}
			child := children[0]
			t.Cleanup(func() {
				if c.ProcessState == nil {
					_ = unix.Kill(child, unix.SIGKILL)
				}
			})
			in, err := newHost(t).Inspect(t.Context(), inspection(child))
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, f := range in.Blockers {
				rest, ok := strings.CutPrefix(f.Detail, fmt.Sprintf("process %d shares ", child))
				rest, also := strings.CutSuffix(rest, fmt.Sprintf(" with process %d", c.Process.Pid))
				if f.Code != migrate.CodeSharedKernel || f.Hint == "" || !ok || !also {
					t.Errorf("also: %v", f)
					continue
				}
				got = append(got, rest)
			}
			slices.Sort(got)
			if !slices.Equal(got, tt.want) {
				t.Errorf("shared are %q, want %q", got, tt.want)
			}
			if err := unix.Kill(child, unix.SIGUSR1); err != nil {
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
