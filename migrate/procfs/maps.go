package procfs

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A VMA is one line of /proc/PID/maps.
type VMA struct {
	Start, End uint64
	Prot       int // PROT_READ | PROT_WRITE | PROT_EXEC
	Shared     bool
	Offset     uint64
	Major      uint32
	Minor      uint32
	Inode      uint64
	// Name is a path, the name of a special mapping in brackets, or empty.
	Name string
}

// errOverlap says that two lines are of different moments.
var errOverlap = errors.New("overlaps the one before")

// deletedSuffix marks a path that leads nowhere any more. A file may really be
// called so: only its link count tells.
const deletedSuffix = " (deleted)"

// ParseMaps parses /proc/PID/maps.
func ParseMaps(data []byte) ([]VMA, error) {
	var all []VMA
	for line := range strings.Lines(string(data)) {
		v, err := parseVMA(strings.TrimSuffix(line, "\n"))
		if err != nil {
			return nil, fmt.Errorf("parsing mappings: line %q: %w", line, err)
		}
		if n := len(all); n > 0 && v.Start < all[n-1].End {
			return nil, fmt.Errorf("parsing mappings: line %q: %w", line, errOverlap)
		}
		all = append(all, v)
	}
	return all, nil
}

// parseVMA parses
//
//	7f2a1000-7f2a3000 r-xp 00002000 fe:00 246999      /usr/bin/bash
func parseVMA(line string) (VMA, error) {
	var v VMA
	p := fields{rest: line}
	v.Start, v.End = p.hexRange()
	perms := p.word()
	v.Offset = p.hex()
	major, minor, _ := strings.Cut(p.word(), ":")
	v.Major, v.Minor = uint32(p.parse(major, 16)), uint32(p.parse(minor, 16))
	v.Inode = p.number()
	v.Name = unescape(p.rest)
	if p.err != nil {
		return VMA{}, p.err
	}
	if len(perms) != 4 || v.Start >= v.End {
		return VMA{}, fmt.Errorf("permissions %q of %#x-%#x", perms, v.Start, v.End)
	}
	for i, prot := range []int{unix.PROT_READ, unix.PROT_WRITE, unix.PROT_EXEC} {
		if perms[i] == "rwx"[i] {
			v.Prot |= prot
		}
	}
	v.Shared = perms[3] == 's'
	return v, nil
}

// unescape puts back the line feeds that the kernel writes as \012 (seq_path).
func unescape(path string) string {
	return strings.ReplaceAll(path, `\012`, "\n")
}

// fields takes words from the front of a line; the first error stays.
type fields struct {
	rest string
	err  error
}

func (f *fields) word() string {
	word, rest, _ := strings.Cut(f.rest, " ")
	f.rest = strings.TrimLeft(rest, " ")
	return word
}

func (f *fields) parse(word string, base int) uint64 {
	n, err := strconv.ParseUint(word, base, 64)
	if err != nil && f.err == nil {
		f.err = err
	}
	return n
}

func (f *fields) hex() uint64    { return f.parse(f.word(), 16) }
func (f *fields) number() uint64 { return f.parse(f.word(), 10) }

func (f *fields) hexRange() (from, to uint64) {
	a, b, _ := strings.Cut(f.word(), "-")
	return f.parse(a, 16), f.parse(b, 16)
}
