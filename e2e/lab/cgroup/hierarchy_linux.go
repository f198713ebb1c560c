package cgroup

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// A Hierarchy is the tree of all control groups that this program can see.
type Hierarchy struct {
	Path  string   // valid until Close
	mount *os.File // of a hierarchy that is mounted nowhere, or nil
}

// Open finds the hierarchy.
func Open() (*Hierarchy, error) {
	path, err := mountedAt()
	if err != nil || path != "" {
		return &Hierarchy{Path: path}, err
	}
	mount, err := mountOutOfSight()
	if err != nil {
		return nil, err
	}
	return &Hierarchy{Path: fmt.Sprintf("/proc/self/fd/%d", mount.Fd()), mount: mount}, nil
}

// Close gives the hierarchy up.
func (h *Hierarchy) Close() error {
	if h.mount == nil {
		return nil
	}
	return h.mount.Close()
}

// mountedAt is where cgroup2 is mounted on this machine, or "". It may be
// beside the hierarchies of version 1 or alone.
func mountedAt() (string, error) {
	mounts, err := os.Open("/proc/self/mounts")
	if err != nil {
		return "", err
	}
	defer mounts.Close()
	return cgroup2In(mounts)
}

// cgroup2In is where the first cgroup2 in a list of mounts is mounted, or "".
func cgroup2In(mounts io.Reader) (string, error) {
	lines := bufio.NewScanner(mounts)
	lines.Buffer(nil, 1<<20) // paths and options are longer than one thinks
	for lines.Scan() {
		// The kernel writes one blank between fields, and escapes those in them.
		if f := strings.Split(lines.Text(), " "); len(f) > 2 && f[2] == "cgroup2" {
			return unescape(f[1]), nil
		}
	}
	return "", lines.Err()
}

// unescape undoes what the kernel does to blanks in paths (proc_pid_mounts(5)).
func unescape(path string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(path)
}

// mountOutOfSight mounts cgroup2 without putting it anywhere. It is for
// machines that do not mount it at all: elsewhere a second mount would reset
// the options of the first (apply_cgroup_root_flags in kernel/cgroup/cgroup.c).
func mountOutOfSight() (*os.File, error) {
	fsfd, err := unix.Fsopen("cgroup2", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("opening cgroup2, which is mounted nowhere and which this kernel may lack (CONFIG_CGROUPS): %w", err)
	}
	defer unix.Close(fsfd)
	if err := unix.FsconfigCreate(fsfd); err != nil {
		return nil, fmt.Errorf("making a view of cgroup2: %w", err)
	}
	fd, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("mounting cgroup2 out of sight: %w", err)
	}
	return os.NewFile(uintptr(fd), "cgroup2"), nil
}
