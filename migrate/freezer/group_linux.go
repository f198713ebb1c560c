package freezer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Mount finds out where the version 2 hierarchy is mounted.
func Mount() (string, error) {
	const path = "/proc/self/mountinfo"
	content, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	if mount, ok := findMount(string(content)); ok {
		return mount, nil
	}
	return "", fmt.Errorf("no cgroup v2 hierarchy in %s: mount one, as in mount -t cgroup2 none /sys/fs/cgroup: %w", path, errors.ErrUnsupported)
}

// findMount looks for
//
//	36 32 0:31 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw
//
// of which the whole hierarchy is mounted, as far as this cgroup namespace
// shows it.
func findMount(mountinfo string) (string, bool) {
	for line := range strings.Lines(mountinfo) {
		mount, system, ok := strings.Cut(line, " - ")
		words := strings.Fields(mount)
		if ok && strings.HasPrefix(system, "cgroup2 ") && len(words) >= 5 && words[3] == "/" {
			return unescape(words[4]), true
		}
	}
	return "", false
}

// unescape puts back what the kernel writes in octal (mangle_path, fs/seq_file.c).
func unescape(path string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(path)
}

// A Group is a control group.
type Group struct{ dir string }

// At is the group whose directory is dir.
func At(dir string) Group { return Group{dir} }

// Of is the group that process pid is in; root is where the hierarchy is mounted.
func Of(root string, pid int) (Group, error) {
	path := fmt.Sprintf("/proc/%d/cgroup", pid)
	content, err := os.ReadFile(path)
	if err != nil {
		return Group{}, err
	}
	within, err := parseMembership(string(content))
	if err != nil {
		return Group{}, fmt.Errorf("reading %s: %w", path, err)
	}
	return At(filepath.Join(root, within)), nil
}

// parseMembership finds the line 0::/PATH.
func parseMembership(content string) (string, error) {
	for line := range strings.Lines(content) {
		within, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::")
		switch {
		case !ok:
			continue
		case !strings.HasPrefix(within, "/"):
			return "", fmt.Errorf("group %q", within)
		case slices.Contains(strings.Split(within, "/"), ".."):
			return "", fmt.Errorf("group %s lies outside of this cgroup namespace", within)
		}
		return within, nil
	}
	return "", fmt.Errorf("no version 2 hierarchy: %w", errors.ErrUnsupported)
}

// Dir is the group's directory.
func (g Group) Dir() string { return g.dir }

// Child is a group below g.
func (g Group) Child(name string) Group { return At(filepath.Join(g.dir, name)) }

func (g Group) path(file string) string { return filepath.Join(g.dir, file) }

// Make makes the group if it does not exist.
func (g Group) Make() error {
	err := os.Mkdir(g.dir, 0o755)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

// Add moves a process with all its threads into the group. Moving takes
// milliseconds, in which the process runs.
func (g Group) Add(pid int) error {
	err := g.write("cgroup.procs", strconv.Itoa(pid))
	if errors.Is(err, unix.EOPNOTSUPP) {
		err = fmt.Errorf("%w: it is part of a threaded subtree", err)
	}
	if err != nil {
		return fmt.Errorf("moving process %d into control group %s: %w", pid, g.dir, err)
	}
	return nil
}

// Processes lists the processes of the group, those of groups below left out.
// A group that does not exist has none.
func (g Group) Processes() ([]int, error) {
	content, err := os.ReadFile(g.path("cgroup.procs"))
	if notThere(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var pids []int
	for word := range strings.FieldsSeq(string(content)) {
		pid, err := strconv.Atoi(word)
		if err != nil || pid == 0 {
			return nil, fmt.Errorf("process %q of group %s is not in this PID namespace", word, g.dir)
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

// Freeze freezes the group and returns when all of it stands still. If that
// does not come to pass it is thawed again, unless it was frozen before.
func (g Group) Freeze(ctx context.Context) error {
	before, err := g.Frozen()
	if err != nil {
		return err
	}
	events, err := os.Open(g.path("cgroup.events"))
	if err != nil {
		return err
	}
	defer events.Close()
	if err := g.write("cgroup.freeze", "1"); err != nil {
		return err
	}
	if err := g.await(ctx, events, "frozen 1"); err != nil {
		if !before {
			err = errors.Join(err, g.Thaw())
		}
		return fmt.Errorf("freezing control group %s: %w", g.dir, err)
	}
	return nil
}

// Thaw lets the group go on. Tasks that are stopped for other reasons stay so.
func (g Group) Thaw() error { return g.write("cgroup.freeze", "0") }

// write never makes a file: what is not there must say so.
func (g Group) write(name, value string) error {
	file, err := os.OpenFile(g.path(name), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = file.WriteString(value)
	return errors.Join(err, file.Close())
}

// Frozen reports whether the group is frozen or about to be. A group that does
// not exist is not.
func (g Group) Frozen() (bool, error) {
	content, err := os.ReadFile(g.path("cgroup.freeze"))
	if notThere(err) {
		return false, nil
	}
	return strings.TrimSpace(string(content)) == "1", err
}

// Remove removes the group once everything in it has exited. One that is not
// there any more is all right.
func (g Group) Remove(ctx context.Context) error {
	events, err := os.Open(g.path("cgroup.events"))
	if notThere(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer events.Close()
	if err := g.await(ctx, events, "populated 0"); err != nil {
		if notThere(err) {
			return nil
		}
		return fmt.Errorf("removing control group %s: %w", g.dir, err)
	}
	if err := os.Remove(g.dir); !notThere(err) {
		return err
	}
	return nil
}

// Was reports whether a process, alive or not asked for its status since it ended,
// is in a group of this name, which may have been removed. cgroup.procs does not list
// one that has ended; its own membership stays (cgroups(7), "/proc files").
func (g Group) Was(pid int) bool {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return false
	}
	within, err := parseMembership(string(content))
	return err == nil && filepath.Base(strings.TrimSuffix(within, " (deleted)")) == filepath.Base(g.dir)
}

// notThere reports that a group does not exist, or not any more.
func notThere(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) }

// How long to wait for a report before looking by ourselves: the kernel reports
// changes of cgroup.events at most every ten milliseconds
// (CGROUP_FILE_NOTIFY_MIN_INTV, kernel/cgroup/cgroup.c), which is long for a
// freeze, and nothing reports that a context has ended.
const (
	lookFirst = 20 * time.Microsecond
	lookLast  = 10 * time.Millisecond
)

// await waits until cgroup.events has a line.
func (g Group) await(ctx context.Context, events *os.File, line string) error {
	content := make([]byte, 256)
	for wait := lookFirst; ; wait = min(wait+wait/4, lookLast) {
		n, err := events.ReadAt(content, 0)
		if n == 0 {
			return fmt.Errorf("reading %s: %w", events.Name(), err)
		}
		if bytes.Contains(content[:n], []byte(line)) {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%s did not come to say %q: %w", events.Name(), line, context.Cause(ctx))
		}
		poll := []unix.PollFd{{Fd: int32(events.Fd()), Events: unix.POLLPRI}}
		timeout := unix.NsecToTimespec(int64(wait))
		if _, err := unix.Ppoll(poll, &timeout, nil); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("waiting for %s: %w", events.Name(), err)
		}
	}
}
