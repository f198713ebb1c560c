package procfs

import (
	"fmt"
	"strconv"
	"strings"
)

// FDInfo is /proc/PID/fdinfo/FD: the fields that every descriptor has, and the
// lines of its own kind.
type FDInfo struct {
	Position int64
	Flags    int // F_GETFL, and O_CLOEXEC of the descriptor
	MountID  int
	Inode    uint64
	Locks    []Lock
	// Lines are all others, as name and value.
	Lines []Line
}

// Line is one "name: value" line.
type Line struct{ Name, Value string }

// ParseFDInfo parses /proc/PID/fdinfo/FD.
func ParseFDInfo(data []byte) (FDInfo, error) {
	var info FDInfo
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSuffix(line, "\n")
		name, value, ok := strings.Cut(line, ":")
		if !ok {
			// inotify and fanotify put their words behind a name without a colon.
			name, value, _ = strings.Cut(line, " ")
		} else if word, rest, found := strings.Cut(name, " "); found {
			// "inotify wd:1 ino:7f sdev:2a ..."
			name, value = word, rest+":"+value
		}
		value = strings.TrimSpace(value)
		var err error
		switch name {
		case "pos":
			info.Position, err = strconv.ParseInt(value, 10, 64)
		case "flags":
			var flags uint64
			flags, err = strconv.ParseUint(value, 8, 32)
			info.Flags = int(flags)
		case "mnt_id":
			info.MountID, err = strconv.Atoi(value)
		case "ino":
			info.Inode, err = strconv.ParseUint(value, 10, 64)
		case "lock":
			var lock Lock
			if lock, err = parseLock(value); err == nil {
				info.Locks = append(info.Locks, lock)
			}
		default:
			info.Lines = append(info.Lines, Line{name, value})
		}
		if err != nil {
			return FDInfo{}, fmt.Errorf("parsing fdinfo: line %q: %w", line, err)
		}
	}
	return info, nil
}

// Value is the value of the first line of that name.
func (f *FDInfo) Value(name string) (string, bool) {
	for _, l := range f.Lines {
		if l.Name == name {
			return l.Value, true
		}
	}
	return "", false
}

// Word finds "name:value" among the words of a line's value.
func Word(value, name string) (string, bool) {
	for word := range strings.FieldsSeq(value) {
		if v, ok := strings.CutPrefix(word, name+":"); ok {
			return v, true
		}
	}
	return "", false
}

// A Lock is one "lock:" line, in the form of /proc/locks.
type Lock struct {
	Kind    string // POSIX, OFDLCK, FLOCK, LEASE, DELEG
	Write   bool
	Waiting bool
	PID     int
	Start   int64
	End     int64 // inclusive; -1: to the end
}

// parseLock parses
//
//	1: POSIX  ADVISORY  WRITE 812 fe:00:4711 0 EOF
func parseLock(value string) (Lock, error) {
	words := strings.Fields(value)
	if len(words) > 1 && words[1] == "->" {
		return Lock{Waiting: true}, nil
	}
	if len(words) != 8 {
		return Lock{}, fmt.Errorf("%d words", len(words))
	}
	l := Lock{Kind: words[1], Write: words[3] == "WRITE" || words[3] == "RW"}
	var err error
	if l.PID, err = strconv.Atoi(words[4]); err != nil {
		return Lock{}, err
	}
	if l.Start, err = strconv.ParseInt(words[6], 10, 64); err != nil {
		return Lock{}, err
	}
	l.End = -1
	if words[7] != "EOF" {
		if l.End, err = strconv.ParseInt(words[7], 10, 64); err != nil {
			return Lock{}, err
		}
	}
	return l, nil
}
