package cgroup

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What is found is a mount point of cgroup2 that is in the list.
func FuzzMounts(f *testing.F) {
	f.Add("proc /proc proc rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw,nsdelegate 0 0\n")
	f.Add("cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\nnone /a\\040b\\134c cgroup2 rw 0 0")
	f.Add("cgroup2 /cgroup2")
	f.Add("\n \n")
	f.Fuzz(func(t *testing.T, mounts string) {
		path, err := cgroup2In(strings.NewReader(mounts))
		if err != nil {
			if path != "" || len(mounts) < 1<<20 {
				t.Fatalf("%q, %v", path, err)
			}
			return
		}
		if path == "" {
			return
		}
		for line := range strings.Lines(mounts) {
			fields := strings.Split(strings.TrimSuffix(strings.TrimSuffix(line, "\n"), "\r"), " ")
			if len(fields) > 2 && fields[2] == "cgroup2" {
				if unescape(fields[1]) != path {
					t.Errorf("%q instead of %q", path, fields[1])
				}
				return
			}
		}
		t.Errorf("%q is nowhere in the list", path)
	})
}

// escape does what the kernel does to a mount point (show_vfsmnt in
// fs/proc_namespace.c).
var escape = strings.NewReplacer(" ", `\040`, "\t", `\011`, "\n", `\012`, `\`, `\134`)

// Wherever cgroup2 is mounted, it is found there, unless the path is longer than
// paths are.
func FuzzMountPoint(f *testing.F) {
	f.Add("/sys/fs/cgroup")
	f.Add("/a b\tc\nd\\e")
	f.Add(`/\040`)
	f.Add("/a\rb\u00a0c")
	f.Fuzz(func(t *testing.T, path string) {
		escaped := escape.Replace(path)
		if len(escaped) > 4*unix.PathMax || escaped == "" {
			t.Skip()
		}
		list := "proc /proc proc rw 0 0\n /tmp tmpfs rw 0 0\ncgroup2 " + escaped + " cgroup2 rw 0 0\n"
		if got, err := cgroup2In(strings.NewReader(list)); err != nil || got != path {
			t.Errorf("%q, %v instead of %q", got, err, path)
		}
	})
}
