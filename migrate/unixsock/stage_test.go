package unixsock

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// anybody may connect.
var anybody = Access{Mode: 0o666}

// staged is a socket with a name whose file is not in its place yet.
func staged(t *testing.T, typ int, name, cwd string) (int, Staged) {
	t.Helper()
	s, err := Plan([]byte(name), cwd)
	check(t, err)
	fd := newSocket(t, typ)
	check(t, s.Bind(fd, anybody))
	if typ != unix.SOCK_DGRAM {
		check(t, unix.Listen(fd, 5))
	}
	return fd, s
}

// TestNames compares what bind(2) itself does in a directory with what Plan, Bind
// and Publish do in its twin.
func TestNames(t *testing.T) {
	needRoot(t)
	check(t, unix.Unshare(unix.CLONE_FS)) // for a working directory of its own
	base := must(os.MkdirTemp("/tmp", "u"))
	defer os.RemoveAll(base)
	root := base + "/r"
	// What is there: a link out of the working directory and back into it.
	lay := func() {
		for _, dir := range []string{"/cwd/sub/deep", "/cwd/..here", "/far/near"} {
			check(t, os.MkdirAll(root+dir, 0o755))
		}
		for link, to := range map[string]string{"/cwd/link": "../far/near", "/far/back": root + "/cwd/sub/..", "/cwd/sock": "/nowhere"} {
			check(t, os.Symlink(to, root+link))
		}
		check(t, os.Remove(root+"/cwd/sock"))
	}
	files := func() (all []string) {
		check(t, filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
			all = append(all, strings.TrimPrefix(name, root)+" "+d.Type().String())
			return err
		}))
		return all
	}
	for _, name := range []string{
		"sock", "./sock", "@sock", "@", "sock with \xff\n", "..sock", "...", ".//././/sock",
		"sub/sock", "sub/../sock", "sub/deep/../../sock", "../cwd/sock", "../../../../../../tmp/" + filepath.Base(base) + "/r/cwd/sock",
		"link/sock", "link/../sock", "link/../back/sock", "../far/back/sub/../sock", "sub/../sub/sock", "..here/sock",
		root + "/sock", root + "/cwd/sub/../sock", root + "//cwd/link/../back/./sock", "//" + root + "/sock",
		strings.Repeat("s", maxNameBytes), "sub/" + strings.Repeat("s", maxNameBytes-4),
		strings.Repeat("./", 52) + "sock", // 108
	} {
		type outcome struct {
			name  string
			files []string
		}
		var outcomes [2]outcome
		for i := range outcomes {
			lay()
			check(t, unix.Chdir(root+"/cwd"))
			var fd int
			if i == 0 {
				fd = listening(t, unix.SOCK_STREAM, name, 5)
			} else {
				check(t, unix.Chdir("/"))
				before := files()
				var s Staged
				fd, s = staged(t, unix.SOCK_STREAM, name, root+"/cwd")
				if strings.Contains(string(s.Dir)+"/", "/../") || !strings.HasPrefix(string(s.Dir), root) {
					t.Errorf("%q: it is made in %s", name, s.Dir)
				}
				if _, err := os.Lstat(s.Path()); err == nil {
					t.Errorf("%q: its file is there before its time", name)
				}
				if len(files()) <= len(before) {
					t.Errorf("%q: no staging directory below %s", name, root)
				}
				check(t, s.Publish())
				if f := must(FileOf(fd)); f.Path != s.Path() || f.Device != s.Device || f.Inode != s.Inode {
					t.Errorf("%q: %+v of %+v", name, f, s)
				}
			}
			outcomes[i] = outcome{nameOf(t, fd), files()}
			check(t, unix.Chdir(root+"/cwd"))
			to := name
			if !strings.HasPrefix(to, "/") {
				to = root + "/cwd/" + to
			}
			// To the directory by the kernel, as filepath.Dir takes "link/.." for nothing.
			dir, last := filepath.Split(to)
			if f := must(FileOf(fd)); !must(Reaches(dir+last, f.Device, f.Inode)) {
				t.Errorf("%q does not lead to it", name)
			}
			if !reached(t, unix.SOCK_STREAM, must(FileOf(fd)).Path, fd) {
				t.Errorf("%q: no connection", name)
			}
			closeSocket(t, fd)
			check(t, os.RemoveAll(root))
		}
		if diff := cmp.Diff(outcomes[0], outcomes[1], cmp.AllowUnexported(outcome{})); diff != "" {
			t.Errorf("%q: %s", name, diff)
		}
		if want := name + "\x00"; outcomes[1].name != want {
			t.Errorf("%q: it is told as %q", name, outcomes[1].name)
		}
	}
}

func TestNamesThatNoSocketHas(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"/", ".", "..", "sub/", "sub/..", "a\x00b", strings.Repeat("s", maxNameBytes+1), "/" + strings.Repeat("s", maxNameBytes)} {
		_, err := Plan([]byte(name), dir)
		checkIs(t, name, err, fs.ErrInvalid)
		_, err = PlanUnlinked([]byte(name), dir)
		checkIs(t, name, err, fs.ErrInvalid)
	}
	_, err := Plan([]byte("sock"), "relative")
	checkIs(t, "a relative directory", err, fs.ErrInvalid)
	for _, to := range []string{"sock", "/", "/tmp/", "/tmp/..", ""} {
		_, err = PlanAt([]byte("sock"), to)
		checkIs(t, to, err, fs.ErrInvalid)
	}
	check(t, os.MkdirAll(dir+"/far/near", 0o700))
	check(t, os.Symlink("far/near", dir+"/x"))
	_, err = Plan([]byte("x/../x"), dir)
	checkIs(t, "through itself", err, errors.ErrUnsupported)
}

// TestPublish moves a name from a socket to another, which the clients do not
// notice: at each moment one of the two is reached.
func TestPublish(t *testing.T) {
	needRoot(t)
	for _, typ := range []int{unix.SOCK_STREAM, unix.SOCK_SEQPACKET, unix.SOCK_DGRAM} {
		dir := t.TempDir()
		name := dir + "/s"
		old := bound(t, typ, name)
		if typ != unix.SOCK_DGRAM {
			check(t, unix.Listen(old, 5))
		}
		was := must(FileOf(old))
		fd, s := staged(t, typ, name, "")
		if !reached(t, typ, name, old) {
			t.Error("before: the old one is not reached")
		}
		if got := nameOf(t, fd); got != name+"\x00" {
			t.Errorf("before: the name is %q", got)
		}
		for range 2 {
			check(t, s.Publish())
			if !reached(t, typ, name, fd) {
				t.Error("afterwards: the new one is not reached")
			}
			if diff := cmp.Diff([]string{"s"}, entries(t, dir)); diff != "" {
				t.Error(diff)
			}
		}
		if got := nameOf(t, fd); got != name+"\x00" {
			t.Errorf("afterwards: the name is %q", got)
		}
		if d := lookAt(t, fd); string(d.Name) != name || d.FileInode != uint32(s.Inode) || d.Device != s.Device {
			t.Errorf("%+v of %+v", d, s)
		}
		if f := must(FileOf(old)); f.Path != "" {
			t.Errorf("the old one is still at %s", f.Path)
		}
		// The source cleans up, and leaves the new one alone.
		check(t, RemoveIfSame(name, was.Device, was.Inode))
		check(t, s.Discard())
		if !reached(t, typ, name, fd) {
			t.Error("at the end: the new one is not reached")
		}
	}
}

func TestDiscard(t *testing.T) {
	needRoot(t)
	for _, typ := range []int{unix.SOCK_STREAM, unix.SOCK_DGRAM} {
		dir := t.TempDir()
		check(t, os.Mkdir(dir+"/sub", 0o700))
		old := bound(t, typ, dir+"/s")
		if typ != unix.SOCK_DGRAM {
			check(t, unix.Listen(old, 5))
		}
		s, err := Plan([]byte("sub/../s"), dir)
		check(t, err)
		check(t, s.Discard()) // nothing was made yet
		check(t, s.Bind(newSocket(t, typ), anybody))
		if n := len(entries(t, dir)); n != 3 {
			t.Errorf("%d files", n)
		}
		for range 2 {
			check(t, s.Discard())
			if diff := cmp.Diff([]string{"s", "sub"}, entries(t, dir)); diff != "" {
				t.Error(diff)
			}
		}
		if !reached(t, typ, dir+"/s", old) {
			t.Error("the old one is not reached")
		}
		checkIs(t, "publishing what was discarded", s.Publish(), fs.ErrNotExist)
		check(t, os.RemoveAll(dir))
		check(t, s.Discard())
	}
}

// TestStagedAsData: what was written down before Bind, or after it, is enough for
// another process, wherever the first one died.
func TestStagedAsData(t *testing.T) {
	needRoot(t)
	for _, when := range []string{"before", "after"} {
		for _, died := range []string{"bound", "renamed", "published"} {
			dir := t.TempDir() + "/\xff"
			check(t, os.Mkdir(dir, 0o700))
			s, err := Plan([]byte("./s\xfe"), dir)
			check(t, err)
			written := must(json.Marshal(s))
			check(t, s.Bind(newSocket(t, unix.SOCK_DGRAM), anybody))
			if when == "after" {
				written = must(json.Marshal(s))
			}
			switch died {
			case "renamed":
				check(t, os.Rename(filepath.Join(dir, s.Stage, "s\xfe"), s.Path()))
			case "published":
				check(t, s.Publish())
			}
			var read Staged
			check(t, json.Unmarshal(written, &read))
			if when == "after" {
				if diff := cmp.Diff(s, read); diff != "" {
					t.Error(diff)
				}
			}
			check(t, read.Publish())
			if !must(Reaches(s.Path(), s.Device, s.Inode)) || len(entries(t, dir)) != 1 {
				t.Errorf("written down %s Bind, died when %s: %q", when, died, entries(t, dir))
			}
			check(t, read.Discard())
			if len(entries(t, dir)) != 1 {
				t.Error("discarding removed it")
			}
		}
	}
}

// Publish takes nothing for granted that may have changed since.
func TestPublishRefuses(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	_, s := staged(t, unix.SOCK_STREAM, "s", dir)
	check(t, os.WriteFile(dir+"/s", []byte("mine"), 0o600))
	checkIs(t, "over a file", s.Publish(), fs.ErrExist)
	if content, err := os.ReadFile(dir + "/s"); string(content) != "mine" || err != nil {
		t.Errorf("the file has %q, %v", content, err)
	}
	check(t, os.Remove(dir+"/s"))
	check(t, os.Symlink("elsewhere", dir+"/s"))
	checkIs(t, "over a link", s.Publish(), fs.ErrExist)
	check(t, os.Remove(dir+"/s"))

	// Another file where the socket's was.
	at := filepath.Join(dir, s.Stage, "s")
	check(t, os.Rename(at, dir+"/aside"))
	bound(t, unix.SOCK_STREAM, at)
	checkIs(t, "another socket", s.Publish(), fs.ErrExist)
	check(t, os.Rename(dir+"/aside", at))

	// A way out of the directory.
	outside := t.TempDir()
	check(t, os.Rename(dir+"/"+s.Stage, outside+"/stage"))
	check(t, os.Symlink(outside+"/stage", dir+"/"+s.Stage))
	if err := s.Publish(); err == nil || len(entries(t, outside+"/stage")) != 1 {
		t.Errorf("by a link: %v", err)
	}
	check(t, os.Remove(dir+"/"+s.Stage))
	check(t, os.Rename(outside+"/stage", dir+"/"+s.Stage))

	// Another directory at the path.
	check(t, os.Rename(dir, dir+"-moved"))
	check(t, os.Mkdir(dir, 0o700))
	checkIs(t, "another directory", s.Publish(), fs.ErrNotExist)
	checkIs(t, "another directory", s.Bind(newSocket(t, unix.SOCK_STREAM), anybody), fs.ErrNotExist)
	check(t, s.Discard())
	check(t, os.Remove(dir))
	check(t, os.Rename(dir+"-moved", dir))

	check(t, s.Publish())
	// That it was published is known by what it is.
	check(t, os.Remove(dir+"/s"))
	bound(t, unix.SOCK_STREAM, dir+"/s")
	checkIs(t, "another one at its place", s.Publish(), fs.ErrNotExist)
}

// The owner of the directory can rename in it what root has made there.
func TestStageOfAnother(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	root := must(os.OpenRoot(dir))
	defer root.Close()
	s := Staged{Stage: "stage"}
	for _, tt := range []struct {
		uid  int
		mode os.FileMode
		ok   bool
	}{{0, 0o700, true}, {4711, 0o700, false}, {0, 0o770, false}, {0, 0o701, false}} {
		check(t, os.MkdirAll(dir+"/stage", 0o700))
		check(t, os.Chown(dir+"/stage", tt.uid, 0))
		check(t, os.Chmod(dir+"/stage", tt.mode))
		stage, err := s.enter(root)
		if (err == nil) != tt.ok || err != nil && !errors.Is(err, fs.ErrPermission) {
			t.Errorf("%+v: %v", tt, err)
		}
		if err == nil {
			check(t, stage.Close())
		}
	}
}

func TestBindTwice(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	fd, s := staged(t, unix.SOCK_STREAM, "s", dir)
	checkIs(t, "once more", s.Bind(newSocket(t, unix.SOCK_STREAM), anybody), fs.ErrExist)
	check(t, s.Publish())
	if !reached(t, unix.SOCK_STREAM, dir+"/s", fd) {
		t.Error("the first one is not reached")
	}
	// A socket that has a name already: nothing is left.
	again, err := Plan([]byte("t"), dir)
	check(t, err)
	checkIs(t, "a second name", again.Bind(fd, anybody), unix.EINVAL)
	if diff := cmp.Diff([]string{"s"}, entries(t, dir)); diff != "" {
		t.Error(diff)
	}
}

func TestAccess(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	check(t, os.Chmod(dir, 0o777|fs.ModeSetgid))
	check(t, os.Chown(dir, 5, 6))
	for _, access := range []Access{{Mode: 0o755}, {Mode: 0, UID: 7, GID: 8}, {Mode: 0o7777, UID: 1 << 31, GID: 0}} {
		s, err := Plan([]byte("s"), dir)
		check(t, err)
		fd := newSocket(t, unix.SOCK_STREAM)
		check(t, s.Bind(fd, access))
		if f := must(FileOf(fd)); f.Access != access {
			t.Errorf("%+v, not %+v", f.Access, access)
		}
		var st unix.Stat_t
		check(t, unix.Stat(filepath.Join(dir, s.Stage), &st))
		if st.Mode&0o777 != 0o700 || st.Uid != 0 {
			t.Errorf("the staging directory has %o of %d", st.Mode, st.Uid)
		}
		check(t, s.Publish())
		if f := must(FileOf(fd)); f.Access != access || f.Path != dir+"/s" {
			t.Errorf("%+v, not %+v", f, access)
		}
	}
}

// A file is where it was moved to, or where a program was before it left.
func TestPlanAt(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	s, err := PlanAt([]byte("../run/s.tmp"), dir+"/s")
	check(t, err)
	fd := newSocket(t, unix.SOCK_DGRAM)
	check(t, s.Bind(fd, anybody))
	check(t, s.Publish())
	if diff := cmp.Diff([]string{"s"}, entries(t, dir)); diff != "" {
		t.Error(diff)
	}
	if got := nameOf(t, fd); got != "../run/s.tmp\x00" || !reached(t, unix.SOCK_DGRAM, dir+"/s", fd) {
		t.Errorf("it has the name %q", got)
	}
}

// A name that leads nowhere, also of an end that is connected.
func TestUnlinked(t *testing.T) {
	needRoot(t)
	scratch := t.TempDir()
	pair := must(unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0))
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	for _, fd := range []int{newSocket(t, unix.SOCK_DGRAM), pair[0]} {
		s, err := PlanUnlinked([]byte("/not/../there/s"), scratch)
		check(t, err)
		check(t, s.Bind(fd, anybody))
		for _, step := range []func() error{func() error { return nil }, s.Publish, s.Discard} {
			check(t, step())
			if all := entries(t, scratch); len(all) != 0 || s.Path() != "" {
				t.Errorf("%q is left, path %q", all, s.Path())
			}
		}
		if got := nameOf(t, fd); got != "/not/../there/s\x00" {
			t.Errorf("it has the name %q", got)
		}
		if f := must(FileOf(fd)); f.Path != "" || f.Inode != s.Inode {
			t.Errorf("%+v", f)
		}
	}
	must(unix.Write(pair[0], []byte("some")))
	from := make([]byte, 4)
	if n, err := unix.Read(pair[1], from); n != 4 || err != nil {
		t.Errorf("the pair is broken: %d, %v", n, err)
	}
	if s := lookAt(t, pair[0]); s.Status != Connected || s.Peer != inode(pair[1]) || string(s.Name) != "/not/../there/s" {
		t.Errorf("%+v", s)
	}
}

func TestAbstract(t *testing.T) {
	enterNetwork(t)
	for _, name := range []string{"\x00a", "\x00", "\x00@a\x00/b\x00", "\x00" + strings.Repeat("a", maxNameBytes-1)} {
		for _, plan := range []func() (Staged, error){
			func() (Staged, error) { return Plan([]byte(name), "") },
			func() (Staged, error) { return PlanAt([]byte(name), "") },
			func() (Staged, error) { return PlanUnlinked([]byte(name), "") },
		} {
			s, err := plan()
			check(t, err)
			fd := newSocket(t, unix.SOCK_STREAM)
			check(t, s.Bind(fd, anybody))
			if got := nameOf(t, fd); got != name {
				t.Errorf("%q is told as %q", name, got)
			}
			check(t, s.Publish())
			check(t, s.Discard())
			checkIs(t, "in use", s.Bind(newSocket(t, unix.SOCK_STREAM), anybody), unix.EADDRINUSE)
			closeSocket(t, fd)
		}
	}
	s := Staged{Name: []byte("\x00" + strings.Repeat("a", maxNameBytes))}
	checkIs(t, "too long", s.Bind(newSocket(t, unix.SOCK_STREAM), anybody), unix.EINVAL)
}

// A name of the network namespace that the socket is of, not of the caller's.
func TestAbstractElsewhere(t *testing.T) {
	enterNetwork(t)
	there := newSocket(t, unix.SOCK_STREAM)
	check(t, unix.Unshare(unix.CLONE_NEWNET))
	bound(t, unix.SOCK_STREAM, "\x00a")
	s := Staged{Name: []byte("\x00a")}
	check(t, s.Bind(there, anybody))
	_, err := Look(inode(there))
	checkIs(t, "a socket of another namespace", err, fs.ErrNotExist)
}

func TestUnnamed(t *testing.T) {
	fd := newSocket(t, unix.SOCK_STREAM)
	s, err := Plan(nil, "")
	check(t, err)
	check(t, s.Bind(fd, anybody))
	check(t, s.Publish())
	check(t, s.Discard())
	if got := nameOf(t, fd); got != "" {
		t.Errorf("it has the name %q", got)
	}
}

func TestPlanRefuses(t *testing.T) {
	needRoot(t)
	check(t, unix.Unshare(unix.CLONE_NEWNS))
	check(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	dir := t.TempDir()
	check(t, os.WriteFile(dir+"/file", nil, 0o600))
	_, err := Plan([]byte("none/s"), dir)
	checkIs(t, "no directory", err, fs.ErrNotExist)
	_, err = Plan([]byte("s"), dir+"/none")
	checkIs(t, "no working directory", err, fs.ErrNotExist)
	_, err = Plan([]byte("file/s"), dir)
	checkIs(t, "a file", err, unix.ENOTDIR)
	gone := must(os.MkdirTemp(dir, ""))
	fd := must(unix.Open(gone, unix.O_PATH|unix.O_CLOEXEC, 0))
	defer unix.Close(fd)
	check(t, os.Remove(gone))
	_, err = Plan([]byte("s"), fmt.Sprintf("/proc/self/fd/%d", fd))
	checkIs(t, "a directory that was removed", err, fs.ErrNotExist)
	check(t, os.Mkdir(gone+" (deleted)", 0o700))
	_, err = Plan([]byte("s"), fmt.Sprintf("/proc/self/fd/%d", fd))
	checkIs(t, "a directory that was removed, and another one with the name that it is told by", err, fs.ErrNotExist)

	mount := t.TempDir()
	check(t, unix.Mount("none", mount, "tmpfs", 0, ""))
	s, err := Plan([]byte("s"), mount)
	check(t, err)
	check(t, unix.Mount("none", mount, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	_, err = Plan([]byte("s"), mount)
	checkIs(t, "read-only", err, unix.EROFS)
	checkIs(t, "read-only by now", s.Bind(newSocket(t, unix.SOCK_STREAM), anybody), unix.EROFS)
	check(t, s.Discard())
	check(t, unix.Unmount(mount, 0))

	// Without its privileges the thread may not write there.
	check(t, os.Chmod(dir, 0o755))
	s, err = Plan([]byte("s"), dir)
	check(t, err)
	unix.SetfsuidRetUid(4711)
	_, planned := Plan([]byte("s"), dir)
	bound := s.Bind(newSocket(t, unix.SOCK_STREAM), anybody)
	unix.SetfsuidRetUid(0)
	checkIs(t, "not permitted", planned, fs.ErrPermission)
	checkIs(t, "not permitted", bound, unix.EACCES)
}

// The thread has its root and working directory back: the program's first thread
// goes on with them.
func TestThreadGoesBack(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	check(t, unix.Unshare(unix.CLONE_FS))
	check(t, unix.Chdir(dir))
	check(t, os.Mkdir(dir+"/stage", 0o700))
	stage := must(unix.Open(dir+"/stage", unix.O_PATH|unix.O_CLOEXEC, 0))
	defer unix.Close(stage)
	for _, name := range []string{"s", "s", "none/s"} { // the latter two fail
		err := bindFromRoot(stage, newSocket(t, unix.SOCK_STREAM), []byte(name))
		if cwd := must(os.Readlink("/proc/thread-self/cwd")); cwd != dir {
			t.Errorf("after %v the working directory is %s", err, cwd)
		}
		if root := must(os.Readlink("/proc/thread-self/root")); root != "/" {
			t.Errorf("after %v the root is %s", err, root)
		}
	}
	if diff := cmp.Diff([]string{"s"}, entries(t, dir+"/stage")); diff != "" {
		t.Error(diff)
	}
}

func FuzzWalk(f *testing.F) {
	for _, name := range []string{"s", "/a/../b//./s", "../../s", "x/../x", "a/b/", "\x00a", ""} {
		f.Add([]byte(name))
	}
	f.Fuzz(func(t *testing.T, name []byte) {
		dirs, file, err := walk(name)
		if err != nil {
			return
		}
		seen := map[string]bool{".": true}
		for _, dir := range append(dirs, file) {
			if !filepath.IsLocal(dir) || filepath.Clean(dir) != dir || !seen[filepath.Dir(dir)] || seen[dir] {
				t.Errorf("%q: %q of %q, %q", name, dir, dirs, file)
			}
			seen[dir] = true
		}
	})
}
