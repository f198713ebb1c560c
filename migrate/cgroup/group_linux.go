package cgroup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Mount finds where the hierarchy of version 2 is mounted: beside the ones of
// version 1 on some machines, and not at the usual place.
func Mount() (string, error) {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(mounts)) {
		if words := strings.Fields(line); len(words) > 2 && words[2] == "cgroup2" {
			return words[1], nil
		}
	}
	return "", fmt.Errorf("no cgroup2 file system is mounted: %w", errors.ErrUnsupported)
}

// Of is the group that a process is in, below the mount.
func Of(mount string, pid int) (Group, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return Group{}, err
	}
	for line := range strings.Lines(string(text)) {
		if path, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::"); ok {
			return Group{filepath.Join(mount, path)}, nil
		}
	}
	return Group{}, fmt.Errorf("process %d is in no control group of version 2: %w", pid, errors.ErrUnsupported)
}

// A Group is one control group, by the path of its directory.
type Group struct{ Path string }

// Make makes a group below g. One that exists already is taken.
func (g Group) Make(name string) (Group, error) {
	child := Group{filepath.Join(g.Path, name)}
	if err := os.Mkdir(child.Path, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return child, fmt.Errorf("making a control group: %w", err)
	}
	return child, nil
}

// Exists reports whether the group is there.
func (g Group) Exists() bool {
	_, err := os.Stat(g.Path)
	return err == nil
}

// Add moves a process, with all its threads, into the group.
func (g Group) Add(pid int) error {
	if err := g.write("cgroup.procs", strconv.Itoa(pid)); err != nil {
		return fmt.Errorf("moving process %d into control group %s: %w", pid, g.Path, err)
	}
	return nil
}

// Processes are those of the group.
func (g Group) Processes() ([]int, error) {
	text, err := os.ReadFile(filepath.Join(g.Path, "cgroup.procs"))
	if err != nil {
		return nil, err
	}
	var pids []int
	for word := range strings.FieldsSeq(string(text)) {
		pid, err := strconv.Atoi(word)
		if err != nil {
			return nil, fmt.Errorf("reading the processes of %s: %w", g.Path, err)
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

// SetFrozen asks for the state and does not wait until all threads are in it.
func (g Group) SetFrozen(frozen bool) error {
	value := "0"
	if frozen {
		value = "1"
	}
	return g.write("cgroup.freeze", value)
}

// Freeze stops all threads of the group and waits until they have. Threads
// that a tracer has stopped count as frozen.
func (g Group) Freeze(ctx context.Context) error {
	if err := g.SetFrozen(true); err != nil {
		return err
	}
	return g.await(ctx, "frozen 1")
}

// Thaw lets all threads of the group run and waits until they do.
func (g Group) Thaw(ctx context.Context) error {
	if err := g.SetFrozen(false); err != nil {
		return err
	}
	return g.await(ctx, "frozen 0")
}

// AwaitFrozen waits until all threads are frozen after SetFrozen(true).
func (g Group) AwaitFrozen(ctx context.Context) error { return g.await(ctx, "frozen 1") }

// Kill kills all processes of the group, frozen ones too, and waits until they
// are gone.
func (g Group) Kill(ctx context.Context) error {
	err := g.write("cgroup.kill", "1")
	if errors.Is(err, os.ErrNotExist) && g.Exists() { // before Linux 5.14
		err = g.killEach()
	}
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	if err != nil {
		return err
	}
	return g.await(ctx, "populated 0")
}

func (g Group) killEach() error {
	pids, err := g.Processes()
	for _, pid := range pids {
		if killErr := unix.Kill(pid, unix.SIGKILL); !errors.Is(killErr, unix.ESRCH) {
			err = errors.Join(err, killErr)
		}
	}
	return err
}

// Remove removes an empty group. One that is gone already is no error.
func (g Group) Remove(ctx context.Context) error {
	// The last thread to leave may still be on its way out.
	for {
		err := os.Remove(g.Path)
		if err == nil || errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		case <-time.After(time.Millisecond):
		}
	}
}

// Populated reports whether the group has processes.
func (g Group) Populated() (bool, error) {
	events, err := os.ReadFile(filepath.Join(g.Path, "cgroup.events"))
	return bytes.Contains(events, []byte("populated 1")), err
}

// await waits until cgroup.events holds a line.
func (g Group) await(ctx context.Context, line string) error {
	file, err := os.Open(filepath.Join(g.Path, "cgroup.events"))
	if err != nil {
		return err
	}
	defer file.Close()
	buf := make([]byte, 256)
	for {
		n, err := file.ReadAt(buf, 0)
		if n == 0 {
			return fmt.Errorf("reading the events of control group %s: %w", g.Path, err)
		}
		if bytes.Contains(buf[:n], []byte(line)) {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("waiting for %q of control group %s: %w", line, g.Path, context.Cause(ctx))
		}
		// The kernel reports a change of the file by POLLPRI (kernfs). A change
		// between our reading and the poll is reported at once.
		fds := []unix.PollFd{{Fd: int32(file.Fd()), Events: unix.POLLPRI}}
		if _, err := unix.Poll(fds, pollMS); err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// pollMS is after how many milliseconds a wait looks at its context again.
const pollMS = 20

func (g Group) write(name, value string) error {
	// Without O_CREATE: a group that is gone must say so.
	file, err := os.OpenFile(filepath.Join(g.Path, name), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = file.WriteString(value)
	return errors.Join(err, file.Close())
}
