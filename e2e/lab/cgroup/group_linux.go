package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Clear kills whatever is in a group or below it and returns when nothing is.
//
// It does not use cgroup.kill: after that, Linux 6.18 kills at birth whatever
// clone3(2) with CLONE_INTO_CGROUP starts in the group from another one.
func Clear(path string, deadline time.Time) error {
	events, err := os.Open(filepath.Join(path, "cgroup.events"))
	if err != nil {
		return err
	}
	defer events.Close()
	for {
		// Read before the kill: a change after that ends the wait below.
		populated, err := isPopulated(events)
		if err != nil || !populated {
			return err
		}
		if err := kill(path); err != nil {
			return err
		}
		left := time.Until(deadline)
		if left <= 0 {
			return fmt.Errorf("processes in %s do not die: %w", path, os.ErrDeadlineExceeded)
		}
		// Every change of the file is reported (cgroup-v2.rst, "cgroup.events").
		// What was forked between the look and the kill does not change it, so
		// look again after a while in any case.
		poll := []unix.PollFd{{Fd: int32(events.Fd()), Events: unix.POLLPRI}}
		if _, err := unix.Poll(poll, int(min(left, 100*time.Millisecond).Milliseconds())); err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func isPopulated(events *os.File) (bool, error) {
	content := make([]byte, 256)
	n, err := events.ReadAt(content, 0)
	if n == 0 {
		return false, fmt.Errorf("reading %s: %w", events.Name(), err)
	}
	return bytes.Contains(content[:n], []byte("populated 1")), nil
}

// kill kills, once, every process in a group and below it.
func kill(path string) error {
	return filepath.WalkDir(path, func(at string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // removed meanwhile, so nothing was in it
		}
		if err != nil || !entry.IsDir() {
			return err
		}
		members, err := os.ReadFile(filepath.Join(at, "cgroup.procs"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENODEV) {
			return err
		}
		for member := range strings.FieldsSeq(string(members)) {
			pid, err := strconv.Atoi(member)
			if err != nil || pid == 0 {
				return fmt.Errorf("process %q of group %s is not in this PID namespace", member, at)
			}
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("killing process %d: %w", pid, err)
			}
		}
		return nil
	})
}

// Remove clears a group and removes it with all that are below it. Groups that
// are not there any more are all right.
func Remove(path string, deadline time.Time) error {
	for {
		err := Clear(path, deadline)
		if err == nil {
			err = removeTree(path)
		}
		switch {
		case err == nil || errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV):
			return nil
		// A process was just being started into a group, or a group was just
		// being made: look again.
		case errors.Is(err, unix.EBUSY) && time.Now().Before(deadline):
		default:
			return fmt.Errorf("removing control group %s: %w", path, err)
		}
	}
}

// removeTree removes a group after those below it, which are its directories.
func removeTree(path string) error {
	entries, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		if err := removeTree(filepath.Join(path, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return os.Remove(path)
}
