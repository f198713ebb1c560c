package source

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/parasite/parasitetest"
)

// victimKind names the kind of victim to the test binary that is started again.
const victimKind = "PAGURUS_SOURCE_VICTIM"

// victimDir is where a victim finds its orders: a file that is there is one.
const victimDir = "PAGURUS_SOURCE_DIR"

var victims = map[string]func(v *victimSelf) error{
	"idle":   func(*victimSelf) error { return nil },
	"churn":  churn,
	"greedy": greedy,
	"open":   holdObjects,
	"locked": holdLocks,
	"exec": func(v *victimSelf) error {
		v.await("go")
		return syscall.Exec("/bin/sleep", []string{"sleep", "1000"}, nil)
	},
	"fork": func(v *victimSelf) error {
		v.await("go")
		return exec.Command("/bin/sleep", "1000").Start()
	},
	"sandboxed": sandbox,
	"exit": func(v *victimSelf) error {
		v.await("go")
		os.Exit(3)
		return nil
	},
}

// sandbox puts one thread into a Landlock domain in which nothing can be
// executed (landlock(7)).
func sandbox(v *victimSelf) error {
	runtime.LockOSThread()
	if err := restrict(); err != nil {
		return err
	}
	v.ready()
	v.await("stop")
	return nil
}

// restrict puts this thread there.
func restrict() error {
	attr := unix.LandlockRulesetAttr{Access_fs: unix.LANDLOCK_ACCESS_FS_EXECUTE}
	fd, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr.Access_fs), 0)
	if errno != 0 {
		return fmt.Errorf("landlock_create_ruleset: %w", errno)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	if _, _, errno := unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, fd, 0, 0); errno != 0 {
		return fmt.Errorf("landlock_restrict_self: %w", errno)
	}
	return unix.Close(int(fd))
}

// A victimSelf is a victim as it sees itself.
type victimSelf struct {
	dir   string
	begun *os.File // closed when it is ready
}

func (v *victimSelf) told(order string) bool {
	_, err := os.Stat(filepath.Join(v.dir, order))
	return err == nil
}

func (v *victimSelf) await(order string) {
	ticker := time.NewTicker(2 * time.Millisecond)
	defer ticker.Stop()
	for !v.told(order) {
		<-ticker.C
	}
}

// runVictim is a victim's main function. Beside what its kind does it waits in
// epoll_wait and fails if that is ever interrupted.
func runVictim(kind string) {
	v := &victimSelf{dir: os.Getenv(victimDir), begun: os.NewFile(3, "begun")}
	closeInherited()
	_, _ = os.ReadFile("/proc/self/stat") // has the runtime open all that it ever will
	errs := make(chan error, 2)
	waiting := make(chan struct{})
	go func() { errs <- v.uninterrupted(func() { close(waiting) }) }()
	<-waiting
	switch kind {
	case "churn", "greedy", "open", "locked", "sandboxed": // are ready when they say so
	default:
		v.ready()
	}
	go func() {
		if err := victims[kind](v); err != nil {
			errs <- err
		}
	}()
	go func() {
		v.await("stop")
		errs <- nil
	}()
	if err := <-errs; err != nil {
		fmt.Fprintln(os.Stdout, err)
		os.Exit(1)
	}
	fmt.Fprintln(os.Stdout, "well")
	os.Exit(0)
}

// closeInherited closes what whoever runs the tests has left open for all.
func closeInherited() {
	for fd := uintptr(4); fd < 1024; fd++ {
		if flags, err := unix.FcntlInt(fd, unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			unix.Close(int(fd))
		}
	}
}

func (v *victimSelf) ready() { v.begun.Close() }

func (v *victimSelf) uninterrupted(waiting func()) error {
	runtime.LockOSThread()
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return err
	}
	waiting()
	for !v.told("stop") {
		if n, err := unix.EpollWait(fd, make([]unix.EpollEvent, 1), 20); n != 0 || err != nil {
			return fmt.Errorf("epoll_wait: %d, %w", n, err)
		}
	}
	return nil
}

const anonymous = unix.MAP_PRIVATE | unix.MAP_ANONYMOUS

func mapped(bytes, prot, flags int) []byte {
	b, err := unix.Mmap(-1, 0, bytes, prot, flags)
	if err != nil {
		panic(err)
	}
	return b
}

func scribble(page []byte, r *rand.Rand) {
	for i := 0; i < image.PageSize; i += 512 {
		binary.LittleEndian.PutUint64(page[i:], r.Uint64())
	}
}

// churn writes, maps, unmaps, moves, gives up and protects memory of all kinds.
func churn(v *victimSelf) error {
	const region = 24 << 20
	memory := mapped(region, unix.PROT_READ|unix.PROT_WRITE, anonymous)
	hidden := mapped(256<<10, unix.PROT_NONE, anonymous)
	shared := mapped(2<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	fd, err := unix.MemfdCreate(fmt.Sprintf("victim %d", os.Getpid()), 0)
	if err != nil {
		return err
	}
	if err := unix.Ftruncate(fd, 2<<20); err != nil {
		return err
	}
	view, err := unix.Mmap(fd, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	exe, err := os.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	file, err := unix.Mmap(int(exe.Fd()), 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	if err != nil {
		return err
	}
	if err := exe.Close(); err != nil {
		return err
	}
	r := rand.New(rand.NewPCG(1, uint64(os.Getpid())))
	for at := 0; at < region; at += image.PageSize {
		scribble(memory[at:], r)
	}
	v.ready()
	page := func(b []byte) []byte {
		n := len(b) / image.PageSize
		return b[r.IntN(n)*image.PageSize:][:image.PageSize]
	}
	var extra [][]byte
	for range time.Tick(time.Millisecond) {
		for range 8 {
			scribble(page(memory), r)
		}
		scribble(page(shared), r)
		scribble(page(view), r)
		scribble(page(file), r)
		if _, err := unix.Pwrite(fd, page(memory), int64(r.IntN(512))*image.PageSize); err != nil {
			return err
		}
		switch r.IntN(8) {
		case 0:
			b := mapped(64<<10, unix.PROT_READ|unix.PROT_WRITE, anonymous)
			scribble(b, r)
			extra = append(extra, b)
		case 1:
			if len(extra) > 16 {
				i := r.IntN(len(extra))
				if err := unix.Munmap(extra[i]); err != nil {
					return err
				}
				extra[i] = extra[len(extra)-1]
				extra = extra[:len(extra)-1]
			}
		case 2:
			if len(extra) > 0 {
				i := r.IntN(len(extra))
				moved, err := unix.Mremap(extra[i], len(extra[i])+16<<10, unix.MREMAP_MAYMOVE)
				if err == nil {
					extra[i] = moved
					scribble(page(moved), r)
				}
			}
		case 3:
			if err := unix.Madvise(page(memory), unix.MADV_DONTNEED); err != nil {
				return err
			}
		case 4:
			if err := unix.Madvise(page(file), unix.MADV_DONTNEED); err != nil {
				return err
			}
		case 5:
			p := page(hidden)
			if err := unix.Mprotect(p, unix.PROT_READ|unix.PROT_WRITE); err != nil {
				return err
			}
			scribble(p, r)
			if err := unix.Mprotect(p, unix.PROT_NONE); err != nil {
				return err
			}
		case 6:
			if err := unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(256+r.IntN(256))*image.PageSize, image.PageSize); err != nil {
				return err
			}
		case 7:
			// Nobody sees this mapping between two rounds.
			passing, err := unix.Mmap(fd, 1<<20, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			if err != nil {
				return err
			}
			p := page(passing)
			_ = p[0] + p[1]
			scribble(p, r)
			if err := unix.Munmap(passing); err != nil {
				return err
			}
		}
		if v.told("stop") {
			return nil
		}
	}
	return nil
}

// greedy writes to all of its memory all the time.
func greedy(v *victimSelf) error {
	memory := mapped(16<<20, unix.PROT_READ|unix.PROT_WRITE, anonymous)
	r := rand.New(rand.NewPCG(1, 2))
	for first := true; ; first = false {
		for at := 0; at < len(memory); at += image.PageSize {
			scribble(memory[at:], r)
		}
		if first {
			v.ready()
		}
		if v.told("stop") {
			return nil
		}
	}
}

// holdObjects has a deleted file and a memfd that nothing changes, and guard
// pages in the middle of memory.
func holdObjects(v *victimSelf) error {
	file, err := os.CreateTemp(v.dir, "gone")
	if err != nil {
		return err
	}
	if err := os.Remove(file.Name()); err != nil {
		return err
	}
	content := make([]byte, 3*image.PageSize+100)
	scribble(content, rand.New(rand.NewPCG(3, 4)))
	if _, err := file.Write(content); err != nil {
		return err
	}
	memory := mapped(1<<20, unix.PROT_READ|unix.PROT_WRITE, anonymous)
	for at := 0; at < len(memory); at += image.PageSize {
		memory[at] = 7
	}
	const guardInstall = 102
	if err := unix.Madvise(memory[64<<10:80<<10], guardInstall); err != nil {
		return err
	}
	v.ready()
	v.await("stop")
	runtime.KeepAlive(file)
	return nil
}

// A victim is one as its test sees it.
type victim struct {
	t   testing.TB
	pid int
	dir string
	cmd *exec.Cmd
	out string

	ended bool
}

func startVictim(t testing.TB, kind string) *victim {
	t.Helper()
	parasitetest.NeedRoot(t)
	v := &victim{t: t, dir: t.TempDir()}
	v.out = filepath.Join(v.dir, "output")
	// Whoever starts a process keeps none of its descriptors, or they would be
	// held outside of the tree.
	out, err := os.OpenFile(v.out, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	in, ready, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	v.cmd = exec.Command("/proc/self/exe")
	v.cmd.Env = append(os.Environ(), victimKind+"="+kind, victimDir+"="+v.dir, "GODEBUG=asyncpreemptoff=1")
	v.cmd.Stdout, v.cmd.Stderr = out, out
	v.cmd.Dir = "/"
	v.cmd.ExtraFiles = []*os.File{ready}
	v.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = v.cmd.Start()
	ready.Close()
	if err != nil {
		t.Fatal(err)
	}
	v.pid = v.cmd.Process.Pid
	t.Cleanup(v.kill)
	_, _ = in.Read(make([]byte, 1)) // until it closes its end
	return v
}

// order makes the victim do something.
func (v *victim) order(what string) {
	v.t.Helper()
	if err := os.WriteFile(filepath.Join(v.dir, what), nil, 0o600); err != nil {
		v.t.Fatal(err)
	}
}

// awaitDone waits until the victim says that it has done something.
func (v *victim) awaitDone() {
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for {
		if info, err := os.Stat(filepath.Join(v.dir, "done")); err == nil && info.Size() > 0 {
			return
		}
		if said, err := os.ReadFile(v.out); err != nil || len(said) > 0 {
			v.t.Errorf("the victim says %s (%v)", said, err)
			return
		}
		<-ticker.C
	}
}

// finish asks the victim for its opinion and ends it.
func (v *victim) finish() {
	v.t.Helper()
	v.order("stop")
	err := v.cmd.Wait()
	v.ended = true
	said, readErr := os.ReadFile(v.out)
	if err != nil || readErr != nil || strings.TrimSpace(string(said)) != "well" {
		v.t.Errorf("victim ends with %v (%v): %s", err, readErr, said)
	}
}

func (v *victim) kill() {
	if v.ended {
		return
	}
	v.ended = true
	_ = v.cmd.Process.Kill()
	_ = v.cmd.Wait()
}
