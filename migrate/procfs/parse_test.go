package procfs

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate/image"
)

func testdata(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestParseMaps(t *testing.T) {
	vmas, err := ParseMaps(testdata(t, "maps"))
	if err != nil {
		t.Fatal(err)
	}
	byName := make(map[string]VMA)
	for _, v := range vmas {
		if _, ok := byName[v.Name]; !ok {
			byName[v.Name] = v
		}
	}
	for _, want := range []VMA{
		{Start: 0x400000, End: 0x401000, Prot: unix.PROT_READ, Offset: 0, Major: 0xfe, Inode: 246999, Name: "/usr/bin/a program"},
		{Start: 0x7f0000010000, End: 0x7f0000020000, Prot: unix.PROT_READ | unix.PROT_WRITE, Shared: true, Offset: 0x3000, Minor: 1, Inode: 1025, Name: "/dev/zero (deleted)"},
		{Start: 0x7f0000030000, End: 0x7f0000031000, Prot: 0, Name: ""},
		{Start: 0x7f0000040000, End: 0x7f0000041000, Prot: unix.PROT_READ, Major: 0xfe, Inode: 7, Name: "/tmp/line\nfeed"},
		{Start: 0x7ffd61f8e000, End: 0x7ffd61f90000, Prot: unix.PROT_READ | unix.PROT_EXEC, Name: "[vdso]"},
	} {
		if diff := cmp.Diff(want, byName[want.Name]); diff != "" {
			t.Errorf("%q (-want +got):\n%s", want.Name, diff)
		}
	}
}

func TestParseMapsRefuses(t *testing.T) {
	for _, bad := range []string{
		"garbage\n",
		"2000-1000 r--p 00000000 00:00 0\n",
		"1000-2000 r-p 00000000 00:00 0\n",
		"1000-3000 r--p 00000000 00:00 0\n2000-4000 r--p 00000000 00:00 0\n",
	} {
		if _, err := ParseMaps([]byte(bad)); err == nil {
			t.Errorf("accepted %q", bad)
		}
	}
}

func TestParseSmaps(t *testing.T) {
	flags, err := ParseSmaps(testdata(t, "smaps"))
	if err != nil {
		t.Fatal(err)
	}
	want := map[uint64]VMFlags{
		0x56249510f000: "rd mr mw me sd",
		0x7ffd61f71000: "rd wr mr mw me gd ac",
	}
	if diff := cmp.Diff(want, flags); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := flags[0x7ffd61f71000].Image(); got != image.FlagGrowsDown|image.FlagMayWrite {
		t.Errorf("flags of the stack: %b", got)
	}
}

func TestParseStatus(t *testing.T) {
	s, err := ParseStatus(testdata(t, "status"))
	if err != nil {
		t.Fatal(err)
	}
	want := Status{
		Name: "bash", State: 'S', TGID: 812, PID: 812, PPID: 1, NSPIDs: []int{812, 7},
		UIDs: [4]uint32{1000, 1001, 1002, 1003}, GIDs: [4]uint32{100, 100, 100, 100}, Groups: []uint32{100, 27},
		Umask: 0o22, Threads: 3, RSSBytes: 4096 << 10, SwapBytes: 8 << 10, NoNewPrivs: true, Seccomp: 2,
		CapInh: 0, CapPrm: 0x400, CapEff: 0x400, CapBnd: 0x1fffeffffff, CapAmb: 0x400,
		SigBlk: 0x10000, SigIgn: 0x380004, SigCgt: 0x4b817efb, ShdPnd: 0x200, THPEnabled: true,
	}
	if diff := cmp.Diff(want, s); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestParseStat(t *testing.T) {
	s, err := ParseStat(testdata(t, "stat"))
	if err != nil {
		t.Fatal(err)
	}
	want := Stat{
		Command: "a) R 1 (b", State: 'S', PPID: 1, PGID: 812, SID: 811, TTY: 34816, Flags: 4194560, StartTime: 5005,
		StartCode: 94715570434048, EndCode: 94715571171933, StartStack: 140737260886288,
		StartData: 94715571425904, EndData: 94715571473908, StartBrk: 94715604377600,
		ArgStart: 140737260887610, ArgEnd: 140737260887620, EnvStart: 140737260887620, EnvEnd: 140737260889070,
	}
	if diff := cmp.Diff(want, s); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestParseLimits(t *testing.T) {
	limits, err := ParseLimits(testdata(t, "limits"))
	if err != nil {
		t.Fatal(err)
	}
	for number, want := range map[int]Limit{
		unix.RLIMIT_NOFILE: {1024, 524288},
		unix.RLIMIT_STACK:  {8388608, ^uint64(0)},
		unix.RLIMIT_RTTIME: {^uint64(0), ^uint64(0)},
	} {
		if limits[number] != want {
			t.Errorf("limit %d: %v instead of %v", number, limits[number], want)
		}
	}
	if _, err := ParseLimits([]byte("Max open files 1 2 files\n")); err == nil {
		t.Error("accepted a single limit")
	}
}

func TestParseTimers(t *testing.T) {
	timers, err := ParseTimers(testdata(t, "timers"))
	if err != nil {
		t.Fatal(err)
	}
	want := []Timer{
		{ID: 0, Signal: 60, SigVal: 0x7fff86e452a8, Notify: 0, Thread: 2634, Clock: 0},
		{ID: 3, Signal: 14, SigVal: 0, Notify: 4, Thread: 2636, Clock: 1},
		{ID: 4, Signal: 0, SigVal: 7, Notify: 1, Thread: 2634, Clock: -6},
	}
	if diff := cmp.Diff(want, timers); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestParseFDInfo(t *testing.T) {
	info, err := ParseFDInfo(testdata(t, "fdinfo-epoll"))
	if err != nil {
		t.Fatal(err)
	}
	want := FDInfo{Flags: unix.O_RDWR | unix.O_CLOEXEC, MountID: 15, Inode: 2058, Lines: []Line{
		{"tfd", "5 events:       19 data:             ffffffff00000007  pos:0 ino:80d sdev:f"},
		{"tfd", "4 events: 80000001 data:                4  pos:0 ino:80c sdev:e"},
	}}
	if diff := cmp.Diff(want, info); diff != "" {
		t.Errorf("epoll (-want +got):\n%s", diff)
	}

	info, err = ParseFDInfo(testdata(t, "fdinfo-inotify"))
	if err != nil {
		t.Fatal(err)
	}
	want = FDInfo{Flags: 0, MountID: 15, Inode: 2058, Lines: []Line{
		{"inotify", "wd:3 ino:9e7e sdev:800013 mask:800afce ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:7e9e0000640d1b6d"},
	}}
	if diff := cmp.Diff(want, info); diff != "" {
		t.Errorf("inotify (-want +got):\n%s", diff)
	}
	if wd, ok := Word(info.Lines[0].Value, "wd"); !ok || wd != "3" {
		t.Errorf("wd is %q", wd)
	}

	info, err = ParseFDInfo(testdata(t, "fdinfo-locks"))
	if err != nil {
		t.Fatal(err)
	}
	want = FDInfo{Position: 4711, Flags: unix.O_RDWR | 0o100000, MountID: 29, Inode: 12, Locks: []Lock{
		{Kind: "POSIX", Write: true, PID: 812, Start: 100, End: 199},
		{Kind: "OFDLCK", PID: -1, Start: 0, End: -1},
		{Kind: "FLOCK", Write: true, PID: 812, Start: 0, End: -1},
	}}
	if diff := cmp.Diff(want, info); diff != "" {
		t.Errorf("locks (-want +got):\n%s", diff)
	}
}

// Whatever the kernel, or somebody who only looks like it, writes: no parser
// panics, and what is accepted is within its types.
func FuzzParsers(f *testing.F) {
	files, err := filepath.Glob("testdata/*")
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range files {
		if info, err := os.Stat(name); err == nil && !info.IsDir() {
			f.Add(testdata(f, filepath.Base(name)))
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if vmas, err := ParseMaps(data); err == nil {
			for i, v := range vmas {
				if v.Start >= v.End || i > 0 && v.Start < vmas[i-1].End {
					t.Errorf("mapping %v", v)
				}
			}
		}
		_, _ = ParseSmaps(data)
		_, _ = ParseStatus(data)
		_, _ = ParseStat(data)
		_, _ = ParseLimits(data)
		_, _ = ParseTimers(data)
		_, _ = ParseFDInfo(data)
	})
}

// The parsers understand this kernel.
func TestLive(t *testing.T) {
	p := Process{os.Getpid()}
	stat, err := p.Stat()
	if err != nil {
		t.Fatal(err)
	}
	status, err := p.Status()
	if err != nil {
		t.Fatal(err)
	}
	if stat.PPID != os.Getppid() || status.PPID != os.Getppid() || status.PID != os.Getpid() || !strings.HasPrefix(os.Args[0][strings.LastIndexByte(os.Args[0], '/')+1:], status.Name) {
		t.Errorf("stat %+v, status %+v", stat, status)
	}
	if _, err := p.Limits(); err != nil {
		t.Error(err)
	}
	if _, err := p.Timers(); err != nil {
		t.Error(err)
	}
	fds, err := p.FDs()
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if _, err := p.FDInfo(fd); err != nil && !os.IsNotExist(err) {
			t.Error(err)
		}
	}
	if _, err := p.Children(); err != nil {
		t.Error(err)
	}
	threads, err := p.Threads()
	if err != nil || len(threads) == 0 || threads[0] != os.Getpid() {
		t.Errorf("threads %v, %v", threads, err)
	}
}
