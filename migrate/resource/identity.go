package resource

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/migrate/image"
)

// namespaces: a process moves only between the namespaces that its hosts'
// agents are in. Time namespaces are different on purpose: each shell is made
// in one that continues its clocks.
var namespaces = processKind{
	name: "namespaces",
	dump: func(d *ProcessDump) error {
		if err := d.checkNamespaces(fmt.Sprintf("process %d", d.Proc.PID), "ns/", "cgroup", "ipc", "mnt", "net", "pid", "pid_for_children", "user", "uts"); err != nil {
			return err
		}
		// What a thread can leave or unshare by itself.
		for i := range d.Process.Threads {
			tid := d.Process.Threads[i].TID
			if tid == d.Proc.PID {
				continue
			}
			if err := d.checkNamespaces(fmt.Sprintf("thread %d", tid), fmt.Sprintf("task/%d/ns/", tid), "cgroup", "ipc", "mnt", "net", "pid_for_children", "uts"); err != nil {
				return err
			}
			if err := d.checkTables(tid); err != nil {
				return err
			}
		}
		return nil
	},
}

// ownNamespaces are the names of those that this process is in. It stays there.
var ownNamespaces = sync.OnceValues(func() (map[string]string, error) {
	all := make(map[string]string)
	for _, ns := range []string{"cgroup", "ipc", "mnt", "net", "pid", "pid_for_children", "user", "uts"} {
		name, err := os.Readlink("/proc/self/ns/" + ns)
		if errors.Is(err, os.ErrNotExist) {
			continue // not in this kernel
		}
		if err != nil {
			return nil, err
		}
		all[ns] = name
	}
	return all, nil
})

// checkNamespaces compares those of a process or a thread with this process's.
func (d *ProcessDump) checkNamespaces(who, dir string, names ...string) error {
	own, err := ownNamespaces()
	if err != nil {
		return err
	}
	for _, ns := range names {
		ours, ok := own[ns]
		if !ok {
			continue
		}
		theirs, err := d.Proc.Link(dir + ns)
		if errors.Is(err, os.ErrNotExist) && ns == "pid_for_children" {
			theirs, err = "without a process", nil // it has no name before the first child
		}
		if err != nil {
			return err
		}
		if ours != theirs {
			d.Block(migrate.CodeNamespace, "move it from the host that it sees, or start it outside the container", "%s is in %s namespace %s, its host in %s", who, ns, theirs, ours)
		}
	}
	current, err := d.Proc.Link(dir + "time")
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	children, err := d.Proc.Link(dir + "time_for_children")
	if err == nil && current != children {
		d.Block(migrate.CodeNamespace, "start it without", "%s has prepared another time namespace for its children", who)
	}
	return err
}

// checkTables looks for a thread that has unshared what all threads of a process
// have in common (unshare(2), CLONE_FILES and CLONE_FS): it is read and rebuilt
// once for all.
func (d *ProcessDump) checkTables(tid int) error {
	for kind, name := range map[int]string{kcmpFiles: "descriptors", kcmpFS: "a root, working directory and umask"} {
		order, err := kcmp(d.Proc.PID, tid, kind, 0, 0)
		if err != nil {
			return fmt.Errorf("comparing thread %d with process %d: %w", tid, d.Proc.PID, err)
		}
		if order != 0 {
			d.Block(migrate.CodeProcessState, "restart it: its threads have to share that", "thread %d has %s of its own", tid, name)
		}
	}
	return nil
}

// session: process groups and sessions. A process that leads both keeps them;
// another becomes the leader of a session of its own.
var session = processKind{
	name: "session",
	dump: func(d *ProcessDump) error {
		stat, err := d.Proc.Stat()
		if err != nil {
			return err
		}
		p := d.Process
		p.PPID, p.PGID, p.SID = stat.PPID, stat.PGID, stat.SID
		p.JobStopped = d.leader().JobStopped()
		if p.SID != p.PID {
			d.Warn(migrate.CodeDegraded, "start it with setsid to keep the numbers", "session %d and process group %d stay behind: process %d will lead a session of its own", p.SID, p.PGID, p.PID)
		}
		if stat.TTY != 0 {
			d.Block(migrate.CodeProcessState, "start it with setsid, or in the background without a terminal", "process %d has a controlling terminal", p.PID)
		}
		return nil
	},
	restore: func(r *ProcessRestore) error {
		b := r.batch()
		b.Call(unix.SYS_SETSID)
		return b.RunAll(r.Ctx)
	},
}

// directories: working directory, root and umask.
var directories = processKind{
	name: "directories",
	dump: func(d *ProcessDump) error {
		status, err := d.status(d.Proc.PID)
		if err != nil {
			return err
		}
		d.Process.Umask = status.Umask
		for _, dir := range []struct {
			link string
			path *string
		}{{"root", &d.Process.Root}, {"cwd", &d.Process.Cwd}} {
			path, err := d.Proc.Link(dir.link)
			if err != nil {
				return err
			}
			*dir.path = path
			if !samePath(path, d.Proc.Path(dir.link)) {
				d.Block(migrate.CodeFileGone, "change to another directory first", "%s of process %d, %s, was removed, renamed or is hidden by a mount", dir.link, d.Proc.PID, path)
				*dir.path = "/"
			}
		}
		return nil
	},
	check: func(c *Check, p *image.Process) {
		for _, path := range []string{p.Root, p.Cwd} {
			if info, err := os.Stat(path); err != nil || !info.IsDir() {
				c.Block(migrate.CodeFileMissing, "make the directory there", "directory %s", path)
			}
		}
	},
	restore: func(r *ProcessRestore) error {
		b := r.batch()
		b.Call(unix.SYS_CHDIR, b.String(r.Process.Cwd))
		b.Call(unix.SYS_UMASK, uintptr(r.Process.Umask))
		return b.RunAll(r.Ctx)
	},
}

// changeRoot is done when no path has to be looked up any more.
func (r *ProcessRestore) changeRoot() error {
	if r.Process.Root == "/" {
		return nil
	}
	b := r.batch()
	b.Call(unix.SYS_CHROOT, b.String(r.Process.Root))
	// The working directory stays what it was: chroot(2) does not change it.
	return b.RunAll(r.Ctx)
}

// samePath reports whether a path leads to what a link of /proc leads to.
func samePath(path, link string) bool {
	var a, b unix.Stat_t
	if unix.Stat(path, &a) != nil || unix.Stat(link, &b) != nil {
		return false
	}
	return a.Dev == b.Dev && a.Ino == b.Ino
}

// personality: execution domain flags (personality(2)).
var personality = processKind{
	name: "personality",
	dump: func(d *ProcessDump) error {
		text, err := d.Proc.Read("personality")
		if err != nil {
			return err
		}
		d.Process.Personality, err = strconv.ParseUint(strings.TrimSpace(string(text)), 16, 64)
		return err
	},
	restore: func(r *ProcessRestore) error {
		b := r.batch()
		b.Call(unix.SYS_PERSONALITY, uintptr(r.Process.Personality))
		return b.RunAll(r.Ctx)
	},
}

// membarrier: commands that a process has registered its intent to use; unless
// registered, they fail (membarrier(2)).
var membarrier = processKind{
	name: "membarrier registrations",
	dump: func(d *ProcessDump) error {
		const getRegistrations = 1 << 9 // MEMBARRIER_CMD_GET_REGISTRATIONS, Linux 6.3
		b := d.batch(d.Proc.PID)
		get := b.Call(unix.SYS_MEMBARRIER, getRegistrations, 0, 0)
		d.then(func() error {
			registered, err := b.Result(get)
			if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
				// The kernel cannot tell. Registering what it offers does no harm.
				registered, err = registerAll, nil
			}
			d.Process.Membarrier = uint64(registered)
			return err
		})
		return nil
	},
	restore: func(r *ProcessRestore) error {
		b := r.batch()
		for bit := range 32 {
			if command := uint64(1) << bit; r.Process.Membarrier&command&registerAll != 0 {
				b.Call(unix.SYS_MEMBARRIER, uintptr(command), 0, 0)
			}
		}
		// One that this kernel does not offer was not of use at the source's either.
		return b.Run(r.Ctx)
	},
}

// registerAll are the commands that register: GLOBAL_EXPEDITED, PRIVATE_EXPEDITED,
// PRIVATE_EXPEDITED_SYNC_CORE and PRIVATE_EXPEDITED_RSEQ.
const registerAll = 1<<2 | 1<<4 | 1<<6 | 1<<8

// uint64s reads numbers that a remote call has left in memory.
func uint64s(raw []byte) []uint64 {
	all := make([]uint64, len(raw)/8)
	for i := range all {
		all[i] = binary.NativeEndian.Uint64(raw[8*i:])
	}
	return all
}
