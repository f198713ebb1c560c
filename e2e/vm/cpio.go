package vm

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// An archive is an initramfs: a cpio archive in the "newc" format
// (Documentation/driver-api/early-userspace/buffer-format.rst). The first error
// stays; close returns it.
type archive struct {
	w    io.Writer
	made map[string]bool // directories
	ino  int
	err  error
}

func newArchive(w io.Writer) *archive {
	return &archive{w: w, made: map[string]bool{".": true}}
}

// Types of files in a mode (stat.h).
const (
	modeDir  = 0o040000
	modeChar = 0o020000
	modeFile = 0o100000
	modeLink = 0o120000
)

// dir makes a directory and those above it.
func (a *archive) dir(name string) {
	if name = path.Clean(name); a.made[name] {
		return
	}
	a.dir(path.Dir(name))
	a.made[name] = true
	a.entry(name, modeDir|0o755, 0, 0, "")
}

// file makes a file with this content.
func (a *archive) file(name string, mode uint32, content string) {
	a.dir(path.Dir(name))
	a.entry(name, modeFile|mode, 0, 0, content)
}

// link makes a symbolic link.
func (a *archive) link(name, to string) {
	a.dir(path.Dir(name))
	a.entry(name, modeLink|0o777, 0, 0, to)
}

// device makes a character device.
func (a *archive) device(name string, major, minor uint32) {
	a.dir(path.Dir(name))
	a.entry(name, modeChar|0o600, major, minor, "")
}

// copyFile takes a file of this machine in.
func (a *archive) copyFile(name string, mode uint32, from string) {
	content, err := os.ReadFile(from)
	if err != nil {
		a.fail(err)
		return
	}
	a.file(name, mode, string(content))
}

// copyDir takes a directory of this machine in, if it is there.
func (a *archive) copyDir(name, from string) {
	if _, err := os.Stat(from); err != nil {
		return
	}
	a.fail(filepath.WalkDir(from, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		below, err := filepath.Rel(from, p)
		if err == nil {
			a.copyFile(path.Join(name, filepath.ToSlash(below)), 0o644, p)
		}
		return err
	}))
}

func (a *archive) entry(name string, mode, major, minor uint32, content string) {
	a.ino++
	a.write(fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		a.ino, mode, 0, 0, 1, 0, len(content), 0, 0, major, minor, len(name)+1, 0), name+"\x00")
	a.write(content)
}

// write writes strings in a row and fills up to four bytes.
func (a *archive) write(parts ...string) {
	all := strings.Join(parts, "")
	if fill := -len(all) & 3; fill > 0 {
		all += "\x00\x00\x00"[:fill]
	}
	if a.err == nil {
		_, a.err = io.WriteString(a.w, all)
	}
}

func (a *archive) fail(err error) {
	if a.err == nil {
		a.err = err
	}
}

func (a *archive) close() error {
	a.entry("TRAILER!!!", 0, 0, 0, "")
	return a.err
}
