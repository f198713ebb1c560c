package target_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/migrate/freezer"
)

// TestMoveState compares what /proc and the kernel say of a process before and
// after a move. The program makes itself have one of everything and waits.
func TestMoveState(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("no python3")
	}
	for _, variant := range []string{"root", "user"} {
		t.Run(variant, func(t *testing.T) {
			host := newSource(t)
			dir := t.TempDir()
			// Another user has to get there too.
			for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
				if err := os.Chmod(d, 0o777); err != nil {
					t.Fatal(err)
				}
			}
			script := filepath.Join(dir, "state.py")
			if err := os.WriteFile(script, []byte(stateProgram), 0o644); err != nil {
				t.Fatal(err)
			}
			pid := startProgram(t, filepath.Join(dir, "log"), python, script, dir, variant)
			await(t, func() bool {
				_, err := os.Stat(filepath.Join(dir, "ready"))
				return err == nil
			})
			before, told := snapshot(t, pid, pid), inspect(t, host, pid)
			hasOneOfEach(t, told, variant == "root")
			d := move(t, host, pid, migrate.Options{Verify: true, AllowDegraded: true}.WithDefaults())
			after := snapshot(t, d.arrived(pid), pid)
			if diff := cmp.Diff(before, after); diff != "" {
				t.Errorf("state before (-) and after (+) the move:\n%s", diff)
			}
			if diff := cmp.Diff(told, inspect(t, host, d.arrived(pid))); diff != "" {
				t.Errorf("what the kernel tells the process itself, before (-) and after (+) the move:\n%s", diff)
			}
			if err := os.WriteFile(filepath.Join(dir, "check"), nil, 0o644); err != nil {
				t.Fatal(err)
			}
			result := filepath.Join(dir, "result")
			await(t, func() bool {
				_, err := os.Stat(result)
				return err == nil
			})
			if said, err := os.ReadFile(result); err != nil || string(said) != "ok" {
				t.Errorf("the program says: %s, %v", said, err)
			}
		})
	}
}

// arrived is the process that is pid at the destination, as seen from here.
func (d *destination) arrived(pid int) int {
	d.t.Helper()
	pids, err := freezer.At(filepath.Join(d.groups, "test")).Processes()
	if err != nil {
		d.t.Fatal(err)
	}
	for _, outer := range pids {
		status := read(d.t, fmt.Sprintf("/proc/%d/status", outer))
		if regexp.MustCompile(`(?m)^NSpid:.*\s` + strconv.Itoa(pid) + `$`).MatchString(status) {
			return outer
		}
	}
	d.t.Fatalf("no process %d among %v", pid, pids)
	return 0
}

func read(t *testing.T, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// snapshot is what can be seen of a process from outside, by names. Its ids
// are those that it has in its own namespace.
func snapshot(t *testing.T, outer, inner int) map[string]string {
	t.Helper()
	all := make(map[string]string)
	proc := fmt.Sprintf("/proc/%d/", outer)
	for _, name := range []string{"auxv", "cmdline", "environ", "limits", "oom_score_adj", "coredump_filter", "personality", "timerslack_ns", "loginuid"} {
		if content, err := os.ReadFile(proc + name); err == nil {
			all[name] = string(content)
		}
	}
	for _, name := range []string{"exe", "cwd", "root"} {
		link, err := os.Readlink(proc + name)
		if err != nil {
			t.Fatal(err)
		}
		all[name] = link
	}
	tasks, err := os.ReadDir(proc + "task")
	if err != nil {
		t.Fatal(err)
	}
	for i, task := range tasks {
		addThread(t, all, fmt.Sprintf("thread %d ", i), proc+"task/"+task.Name()+"/")
	}
	all["threads"] = strconv.Itoa(len(tasks))
	timers := strings.Split(regexp.MustCompile(`\.\d+`).ReplaceAllString(read(t, proc+"timers"), ".tid"), "ID: ")
	slices.Sort(timers) // the kernel's order is that of a hash table
	all["timers"] = strings.Join(timers, "ID: ")
	addMappings(t, all, proc)
	addDescriptors(t, all, proc)
	_ = inner
	return all
}

func addThread(t *testing.T, all map[string]string, prefix, dir string) {
	t.Helper()
	all[prefix+"comm"] = read(t, dir+"comm")
	status := read(t, dir+"status")
	for line := range strings.Lines(status) {
		name, value, _ := strings.Cut(line, ":")
		switch name {
		case "Umask", "Uid", "Gid", "Groups", "SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb",
			"NoNewPrivs", "Seccomp", "Seccomp_filters", "Cpus_allowed", "THP_enabled", "VmLck", "VmData", "VmStk", "VmExe":
			all[prefix+name] = strings.TrimSpace(value)
		}
	}
	tid, err := strconv.Atoi(filepath.Base(dir))
	if err != nil {
		t.Fatal(err)
	}
	attr, err := unix.SchedGetAttr(tid, 0)
	if err != nil {
		t.Fatal(err)
	}
	all[prefix+"scheduling"] = fmt.Sprintf("%+v", *attr)
	priority, _, errno := unix.Syscall(unix.SYS_IOPRIO_GET, 1, uintptr(tid), 0)
	all[prefix+"ioprio"] = fmt.Sprint(priority, errno)
}

// addMappings notes all mappings with their flags. Neighbours that differ in
// nothing count as one: a move may join or split them.
func addMappings(t *testing.T, all map[string]string, proc string) {
	t.Helper()
	type mapping struct{ start, end, about string }
	var list []mapping
	header := regexp.MustCompile(`^([0-9a-f]+)-([0-9a-f]+) (\S+) (\S+) \S+ \S+\s*(.*)$`)
	for line := range strings.Lines(read(t, proc+"smaps")) {
		line = strings.TrimSuffix(line, "\n")
		if m := header.FindStringSubmatch(line); m != nil {
			list = append(list, mapping{m[1], m[2], m[3] + " " + m[5]})
			continue
		}
		name, value, _ := strings.Cut(line, ":")
		if name == "VmFlags" {
			last := &list[len(list)-1]
			flags := slices.DeleteFunc(strings.Fields(value), func(f string) bool {
				// Marks of tracking, of accounting, and whether what can only be read
				// could have been shared for writing when it was mapped.
				return slices.Contains([]string{"um", "uw", "sd", "ac", "nr"}, f) || f == "sh" && !strings.Contains(value, " mw")
			})
			last.about += " " + strings.Join(flags, " ")
		}
	}
	var joined []mapping
	for _, m := range list {
		if n := len(joined); n > 0 && joined[n-1].end == m.start && joined[n-1].about == m.about {
			joined[n-1].end = m.end
			continue
		}
		joined = append(joined, m)
	}
	for _, m := range joined {
		all["mapping "+m.start] = m.end + " " + m.about
	}
}

func addDescriptors(t *testing.T, all map[string]string, proc string) {
	t.Helper()
	fds, err := os.ReadDir(proc + "fd")
	if err != nil {
		t.Fatal(err)
	}
	number := regexp.MustCompile(`:\[\d+\]`)
	for _, fd := range fds {
		link, err := os.Readlink(proc + "fd/" + fd.Name())
		if err != nil {
			t.Fatal(err)
		}
		info := read(t, proc+"fdinfo/"+fd.Name())
		var lines []string
		for line := range strings.Lines(info) {
			line = strings.TrimSpace(line)
			name, _, _ := strings.Cut(line, ":")
			switch name {
			case "mnt_id", "ino", "it_value", "ticks", "eventfd-id", "settime flags":
				continue
			case "lock":
				// The holder's id is not the same seen from here, and a deleted file
				// is another one.
				words := strings.Fields(line)
				line = strings.Join(append(words[2:5], words[7:]...), " ")
			}
			if strings.HasPrefix(link, "anon_inode:[eventpoll]") {
				line = regexp.MustCompile(`(pos|ino|sdev):\S+`).ReplaceAllString(line, "")
			}
			lines = append(lines, line)
		}
		if strings.HasSuffix(link, " (deleted)") && !strings.HasPrefix(link, "/memfd:") {
			link = "a deleted file"
		}
		slices.Sort(lines) // registrations stand in the order of the kernel's addresses
		all["descriptor "+fd.Name()] = number.ReplaceAllString(link, "") + "\n" + strings.Join(lines, "\n")
	}
}

const stateProgram = `
import ctypes, ctypes.util, fcntl, mmap, os, resource, select, signal, socket, struct, sys, threading, time, traceback

dir, variant = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)
def syscall(nr, *args):
    r = libc.syscall(ctypes.c_long(nr), *[ctypes.c_long(a) if isinstance(a, int) else a for a in args])
    if r < 0:
        e = ctypes.get_errno()
        raise OSError(e, "system call %d: %s" % (nr, os.strerror(e)))
    return r
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
def mapping(pages, prot=3, flags=0x22, fd=-1, offset=0):
    a = libc.mmap(None, pages * 4096, prot, flags, fd, offset)
    assert a != ctypes.c_void_p(-1).value
    return a
def madvise(a, pages, advice): syscall(28, a, pages * 4096, advice)

# Memory.
advised = {}
for advice in (1, 2, 10, 14, 15, 16, 18):
    advised[advice] = mapping(16)
    ctypes.memset(advised[advice], advice, 4096)
    madvise(advised[advice], 16, advice)
hidden = mapping(4); ctypes.memset(hidden, 77, 4096); syscall(10, hidden, 4 * 4096, 0)
readonly = mapping(4); ctypes.memset(readonly, 78, 4096); syscall(10, readonly, 4 * 4096, 1)
locked = mapping(4); syscall(149, locked, 4 * 4096)
onfault = mapping(4); syscall(325, onfault, 4 * 4096, 1)
reserve = mapping(1 << 20, 0, 0x4022)
named = mapping(4)
libc.prctl(0x53564d41, 0, ctypes.c_ulong(named), ctypes.c_ulong(4 * 4096), b"a name")
grown = mapping(4, 3, 0x122)
try:
    guarded = mapping(8); ctypes.memset(guarded, 79, 8 * 4096); madvise(guarded + 4096, 1, 102)
except OSError:
    guarded = None
shared = mapping(16, 3, 0x21); ctypes.memset(shared + 5000, 80, 100)
with open(dir + "/mapped", "wb") as f: f.write(b"m" * 20000)
mapped = os.open(dir + "/mapped", os.O_RDWR)
sharedfile = mapping(4, 3, 0x01, mapped)
privatefile = mapping(4, 3, 0x02, mapped); ctypes.memset(privatefile + 4096, 81, 10)
sealed = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
os.write(sealed, b"s" * 9000)
fcntl.fcntl(sealed, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
sealedmap = mapping(2, 1, 0x01, sealed)
sealedprivate = mapping(2, 3, 0x02, sealed); ctypes.memset(sealedprivate, 82, 10)

# Descriptors.
os.mkdir(dir + "/d")
directory = os.open(dir + "/d", os.O_RDONLY | os.O_DIRECTORY)
path = os.open(dir + "/mapped", os.O_PATH)
r1, w1 = os.pipe2(os.O_CLOEXEC)
r2, w2 = os.pipe2(os.O_NONBLOCK | os.O_DIRECT)
os.write(w1, b"x" * 5000); fcntl.fcntl(w1, 1031, 1 << 17)
os.write(w2, b"one"); os.write(w2, b"two")
r3, w3 = os.pipe2(os.O_NONBLOCK | os.O_DIRECT); os.write(w3, b"three")
sparse = os.open(dir + "/sparse", os.O_RDWR | os.O_CREAT); os.pwrite(sparse, b"far", 1 << 36); os.unlink(dir + "/sparse")
event = os.eventfd(3, os.EFD_SEMAPHORE | os.EFD_NONBLOCK)
timer = syscall(283, 1, 0)
value = struct.pack("qqqq", 3, 0, 100, 0)
syscall(286, timer, 0, value, 0)
mask = struct.pack("Q", 1 << (signal.SIGUSR2 - 1))
signalfd = syscall(289, -1, mask, 8, 0)
inotify = syscall(294, 0)
os.mkdir(dir + "/e")
w = syscall(254, inotify, (dir + "/d").encode(), 0x3ff); syscall(255, inotify, w); os.read(inotify, 1000)
syscall(254, inotify, (dir + "/e").encode(), 0x100)
ep = select.epoll()
ep.register(r1, select.EPOLLIN | select.EPOLLET)
outer = select.epoll()
outer.register(ep.fileno(), select.EPOLLIN)
gone = os.dup(r2); outer.register(gone, select.EPOLLIN | select.EPOLLONESHOT); os.close(gone)
regular = os.open(dir + "/mapped", os.O_RDONLY); os.lseek(regular, 1234, 0)
twin = os.dup2(regular, 200)
append = os.open(dir + "/append", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
deleted = os.open(dir + "/deleted", os.O_RDWR | os.O_CREAT); os.write(deleted, b"d" * 7000); os.unlink(dir + "/deleted")
again = os.open("/proc/self/fd/%d" % deleted, os.O_RDONLY); os.lseek(again, 10, 0)
null, zero, random = [os.open("/dev/" + n, os.O_RDWR) for n in ("null", "zero", "urandom")]
a, b = socket.socketpair(); a.send(b"queued"); a.shutdown(socket.SHUT_WR)
c, e = socket.socketpair(type=socket.SOCK_DGRAM); [c.send(m) for m in (b"datagram", b"", b"l" * 150000, b"", b"after empty ones")]; e.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 100000)
peeker, peeked = socket.socketpair(); peeked.send(b"to peek ab"); peeker.setsockopt(socket.SOL_SOCKET, 42, 8) # SO_PEEK_OFF
for name, value in ((34, 1), (12, 5), (36, 77)): a.setsockopt(socket.SOL_SOCKET, name, value) # SO_PASSSEC, SO_PRIORITY, SO_MARK
s1, s2 = socket.socketpair(type=socket.SOCK_SEQPACKET); [s1.send(m) for m in (b"", b"", b"", b"packet")]; s1.shutdown(socket.SHUT_WR)
lone, dead = socket.socketpair(); dead.send(b"last words"); dead.close()
fcntl.flock(append, fcntl.LOCK_SH)
fcntl.lockf(deleted, fcntl.LOCK_EX, 10, 5)
fcntl.lockf(mapped, fcntl.LOCK_EX, 10, 5)
ofd = os.open(dir + "/mapped", os.O_RDWR)
fcntl.fcntl(ofd, 37, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 100, 50, 0))
fcntl.fcntl(a, fcntl.F_SETOWN, os.getpid()); fcntl.fcntl(a, fcntl.F_SETSIG if hasattr(fcntl, "F_SETSIG") else 10, signal.SIGUSR1)

# Signals and timers.
signal.signal(signal.SIGUSR1, lambda n, f: None)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
signal.signal(signal.SIGTRAP, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2, signal.SIGRTMIN + 1, signal.SIGWINCH])
libc.sigqueue(os.getpid(), signal.SIGRTMIN + 1, ctypes.c_void_p(4711))
libc.sigqueue(os.getpid(), signal.SIGRTMIN + 1, ctypes.c_void_p(4712))
signal.pthread_kill(threading.get_ident(), signal.SIGWINCH)
os.kill(os.getpid(), signal.SIGUSR2)
signal.setitimer(signal.ITIMER_VIRTUAL, 10000, 1)
signal.setitimer(signal.ITIMER_PROF, 20000, 2)
signal.setitimer(signal.ITIMER_REAL, 30000, 3)
for clock, sig in ((1, signal.SIGUSR1), (0, signal.SIGUSR1), (7, signal.SIGUSR1)):
    id = ctypes.c_int()
    ev = struct.pack("qii", 99, sig, 0) + bytes(48)
    syscall(222, clock, ev, ctypes.byref(id))
    syscall(223, id.value, 0, struct.pack("qqqq", 50, 0, 1000, 0), 0)
syscall(226, 1) # leaves a gap in the ids

# What a process is.
os.chdir(dir + "/d")
os.umask(0o037)
resource.setrlimit(resource.RLIMIT_NOFILE, (512, 1024))
resource.setrlimit(resource.RLIMIT_STACK, (8 << 20, 16 << 20))
os.nice(5)
os.sched_setaffinity(0, [0])
syscall(251, 1, 0, (2 << 13) | 6)
with open("/proc/self/oom_score_adj", "w") as f: f.write("321")
with open("/proc/self/coredump_filter", "w") as f: f.write("0x7")
libc.prctl(29, 123456)           # timer slack
libc.prctl(36, 1)                # child subreaper
libc.personality(0x0040000)      # ADDR_NO_RANDOMIZE
with open("/proc/self/comm", "w") as f: f.write("renamed")

stack_t = lambda: struct.pack("QiiQ", mapping(16), 0, 0, 16 * 4096)
stop = threading.Event()
answers = {}
attr, robust = ctypes.create_string_buffer(64), ctypes.create_string_buffer(64)
libc.pthread_mutexattr_init(attr); libc.pthread_mutexattr_setrobust(attr, 1); libc.pthread_mutex_init(robust, attr)
@ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
def joined(_):
    libc.sigaltstack(stack_t(), None)
    stop.wait()
joinable = ctypes.c_ulong()
assert libc.pthread_create(ctypes.byref(joinable), None, joined, None) == 0
def thread(n):
    libc.sigaltstack(stack_t(), None)
    libc.prctl(15, ("thread %d" % n).encode())
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0)) if n == 1 else None
    value = ctypes.c_double(n)
    if n == 2: assert libc.pthread_mutex_lock(robust) == 0
    stop.wait()
    answers[n] = value.value
threads = [threading.Thread(target=thread, args=(n,)) for n in range(3)]
for x in threads: x.start()

fcntl.fcntl(a, fcntl.F_SETFL, fcntl.fcntl(a, fcntl.F_GETFL) | os.O_ASYNC)
libc.sigaltstack(stack_t(), None)
if variant == "root":
    libc.prctl(28, 0x3)          # secure bits: no root, locked
    libc.prctl(1, signal.SIGUSR1) # at the parent's death
    if libc.prctl(41, 1, 2, 0, 0): libc.prctl(41, 1, 0, 0, 0) # no huge pages, but where advised (Linux 6.18)
    libc.prctl(4, 0)             # not dumpable
if variant == "user":
    libc.prctl(38, 1, 0, 0, 0)   # no new privileges
    # A filter that allows everything but chroot, which is answered with EPERM.
    program = struct.pack("HBBIHBBIHBBIHBBI", 0x20, 0, 0, 0, 0x15, 0, 1, 161, 0x06, 0, 0, 0x50001, 0x06, 0, 0, 0x7fff0000)
    buf = ctypes.create_string_buffer(program)
    fprog = struct.pack("HxxxxxxQ", 4, ctypes.addressof(buf))
    syscall(317, 1, 1, fprog)
    os.setgroups([7, 8, 9]); os.setresgid(1001, 1002, 1003); os.setresuid(1004, 1004, 1004)
boot = time.clock_gettime(time.CLOCK_BOOTTIME); mono = time.monotonic()

def check(what, is_true):
    if not is_true: raise Exception(what)
def content(a, n): return ctypes.string_at(a, n)
def verify():
    now = time.monotonic()
    check("monotonic", mono < now < mono + 60)
    check("boottime", boot < time.clock_gettime(time.CLOCK_BOOTTIME) < boot + 60)
    for advice, at in advised.items(): check("advised", content(at, 4096) == bytes([advice]) * 4096)
    check("readonly", content(readonly, 4096) == bytes([78]) * 4096)
    syscall(10, hidden, 4096, 1); check("hidden", content(hidden, 4096) == bytes([77]) * 4096)
    check("shared", content(shared + 5000, 100) == bytes([80]) * 100)
    check("private file", content(privatefile + 4096, 11) == bytes([81]) * 10 + b"m")
    ctypes.memset(sharedfile, 90, 4); check("shared file", os.pread(mapped, 5, 0) == b"ZZZZm")
    check("sealed", content(sealedmap, 8192) == b"s" * 8192 and content(sealedprivate, 11) == bytes([82]) * 10 + b"s")
    if guarded:
        check("beside the guard", content(guarded, 4096) == bytes([79]) * 4096)
        one = ctypes.create_string_buffer(1)
        def readable(at):
            try: return syscall(310, os.getpid(), struct.pack("QQ", ctypes.addressof(one), 1), 1, struct.pack("QQ", at, 1), 1, 0) == 1 # process_vm_readv
            except OSError: return False
        check("the guard", [readable(guarded + i * 4096) for i in range(8)] == [i != 1 for i in range(8)])
    check("position", os.lseek(regular, 0, 1) == 1234); os.lseek(twin, 17, 0); check("dup", os.lseek(regular, 0, 1) == 17)
    check("deleted", os.pread(again, 8000, 0) == b"d" * 7000 and os.lseek(again, 0, 1) == 10)
    check("packets", (os.read(r2, 10), os.read(r2, 10)) == (b"one", b"two"))
    os.write(w3, b"four"); check("one packet", (os.read(r3, 10), os.read(r3, 10)) == (b"three", b"four"))
    check("sparse file", (os.fstat(sparse).st_size, os.pread(sparse, 9, 1 << 36), os.fstat(sparse).st_blocks < 1000) == ((1 << 36) + 3, b"far", True))
    check("peeking", peeker.getsockopt(socket.SOL_SOCKET, 42) == 8 and peeker.recv(9, socket.MSG_PEEK) == b"ab")
    check("events", os.eventfd_read(event) == 1 and os.eventfd_read(event) == 1)
    check("queue", b.recv(100) == b"queued" and b.recv(100) == b"")
    check("datagrams", [e.recv(200000) for i in range(5)] == [b"datagram", b"", b"l" * 150000, b"", b"after empty ones"])
    check("packets of a socket", [s2.recv(100) for i in range(5)] == [b"", b"", b"", b"packet", b""])
    check("socket options", [a.getsockopt(socket.SOL_SOCKET, name) for name in (34, 12, 36)] == [1, 5, 77])
    check("owner", fcntl.fcntl(a, fcntl.F_GETOWN) == os.getpid() and fcntl.fcntl(a, 11) == signal.SIGUSR1 and fcntl.fcntl(a, fcntl.F_GETFL) & os.O_ASYNC)
    check("lone", lone.recv(100) == b"last words" and lone.recv(100) == b"")
    check("credentials", struct.unpack("iII", a.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0] == os.getpid())
    check("signals", [signal.sigwaitinfo([signal.SIGRTMIN + 1]).si_signo for i in range(2)] == [signal.SIGRTMIN + 1] * 2)
    check("signalfd", os.read(signalfd, 128)[0] == signal.SIGUSR2)
    stop.set()
    for x in threads: x.join(10)
    check("threads", answers == {0: 0.0, 1: 1.0, 2: 2.0})
    check("join", libc.pthread_join(joinable, None) == 0) # waits for the kernel to clear the thread's id
    while libc.pthread_mutex_trylock(robust) == 16: time.sleep(0.01) # EBUSY, until its owner has really gone
    check("robust mutex", libc.pthread_mutex_unlock(robust) == 0 and libc.pthread_mutex_trylock(robust) == 131) # was EOWNERDEAD, now ENOTRECOVERABLE
    open(dir + "/e/new", "w").close() if variant == "root" else None
    if variant == "root": check("inotify", os.read(inotify, 100)[:4] == struct.pack("i", 2))
    if variant == "user":
        try: os.chroot("/")
        except PermissionError: pass
        else: check("filter", False)
    check("nested epoll", dict(outer.poll(0)).get(ep.fileno()) is not None)

def say(name, what):
    with open(dir + "/" + name + ".tmp", "w") as f: f.write(what)
    os.rename(dir + "/" + name + ".tmp", dir + "/" + name)
say("ready", "")
while not os.path.exists(dir + "/check"):
    time.sleep(0.05)
try:
    verify()
    said = "ok"
except BaseException:
    said = traceback.format_exc()
say("result", said)
time.sleep(1000)
`
