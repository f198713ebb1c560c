package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// ErrNone says that there is no lab, or none of that name.
var ErrNone = errors.New("no lab is up: make one with \"migratectl lab up\"")

// IDs lists the labs of this machine, also those that are half made.
func IDs() ([]string, error) {
	paths, err := filepath.Glob(directoryPrefix + "*")
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, path := range paths {
		if id := strings.TrimPrefix(path, directoryPrefix); idPattern.MatchString(id) && ours(path) {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// ours keeps apart what another user may have put into /tmp.
func ours(path string) bool {
	info, err := os.Lstat(path)
	if err != nil || !info.IsDir() || info.Mode().Perm()&0o077 != 0 {
		return false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(st.Uid) == os.Geteuid()
}

// Find opens the named lab, or the only one there is if id is empty.
func Find(id string) (*Lab, error) {
	id, err := Resolve(id)
	if err != nil {
		return nil, err
	}
	content, err := os.ReadFile(filepath.Join(directory(id), "lab.json"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("there is no lab %s, or it is not complete: %w", id, ErrNone)
	}
	if err != nil {
		return nil, fmt.Errorf("opening lab %s: %w", id, err)
	}
	l := &Lab{}
	if err := json.Unmarshal(content, &l.plan); err != nil {
		return nil, fmt.Errorf("reading the plan of lab %s: %w", id, err)
	}
	return l, nil
}

// Resolve is the name of the lab that is meant: id itself, or that of the only
// lab there is if id is empty. The lab may be half made.
func Resolve(id string) (string, error) {
	if id != "" {
		if !idPattern.MatchString(id) {
			return "", fmt.Errorf("%q cannot be the name of a lab", id)
		}
		return id, nil
	}
	ids, err := IDs()
	switch {
	case err != nil:
		return "", err
	case len(ids) == 0:
		return "", ErrNone
	case len(ids) > 1:
		return "", fmt.Errorf("there are several labs, say which with --lab or MIGRATE_LAB: %s", strings.Join(ids, ", "))
	}
	return ids[0], nil
}

// Remove takes a lab down that may be in any state, half made included. The
// error is [ErrNone] if there is nothing of it.
func Remove(ctx context.Context, id string) error {
	id, err := Resolve(id)
	if err != nil {
		return err
	}
	groups, err := openGroups(id)
	if err != nil {
		return err
	}
	defer groups.close()
	_, noDirectory := os.Lstat(directory(id))
	_, noGroups := os.Lstat(groups.path)
	if noDirectory != nil && noGroups != nil {
		return fmt.Errorf("there is no lab %s: %w", id, ErrNone)
	}
	return remove(ctx, id, groups)
}
