package resource

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/migrate/procfs"
)

// sharing tells who outside the tree holds what the tree holds.
type sharing struct {
	tree []int
	fds  map[string][]holder // by what /proc/PID/fd/FD says
	maps map[string][]int    // processes that map an inode in shared memory, by mapKey
}

// A holder is one descriptor of a process outside the tree.
type holder struct{ pid, fd int }

// NoteHolders looks at the descriptors and mappings of all processes of the host
// but those of the tree, which takes its time: it is to be called before the tree
// is stopped, and after it was put where everything that it starts from then on
// is seen. Memory that others map too is reported, and descriptors by the dump.
func (d *TreeDump) NoteHolders(tree []int) error {
	s := &sharing{tree: tree, fds: make(map[string][]holder), maps: make(map[string][]int)}
	pids, err := procfs.All()
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if slices.Contains(s.tree, pid) || pid == os.Getpid() {
			continue
		}
		s.look(procfs.Process{PID: pid}) // what is gone by then holds nothing
	}
	d.sharing = s
	for _, pid := range tree {
		if err := d.checkObjects(procfs.Process{PID: pid}); err != nil {
			return err
		}
	}
	return nil
}

func (s *sharing) look(p procfs.Process) {
	fds, err := p.FDs()
	if err != nil {
		return
	}
	for _, fd := range fds {
		if link, err := p.Link(fmt.Sprintf("fd/%d", fd)); err == nil {
			s.fds[link] = append(s.fds[link], holder{p.PID, fd})
		}
	}
	vmas, err := p.Maps()
	if err != nil {
		return
	}
	for i := range vmas {
		if v := &vmas[i]; v.Shared && v.Inode != 0 {
			s.maps[mapKey(v)] = append(s.maps[mapKey(v)], p.PID)
		}
	}
}

func mapKey(v *procfs.VMA) string { return fmt.Sprintf("%x:%x:%d", v.Major, v.Minor, v.Inode) }

// check reports what of a description is in other hands. Files and devices
// are shared with everybody by their path; what matters there is a common
// position.
func (s *sharing) check(findings *Findings, o *openFile, f *image.File) {
	if s == nil || f.Kind == image.FileDevice || f.Kind == image.FilePath || f.Kind == image.FileDirectory {
		return
	}
	for _, h := range s.fds[o.link] {
		same, err := s.sameDescription(o, h)
		if err != nil {
			continue // it is gone
		}
		other := fmt.Sprintf("descriptor %d, %s, is also held by process %d as %d", o.fd, o.link, h.pid, h.fd)
		switch {
		case f.Kind == image.FileRegular && !same:
			continue // another description of the same file
		case f.Kind == image.FileRegular && f.Flags&(unix.O_APPEND|unix.O_ACCMODE) == unix.O_APPEND|unix.O_WRONLY:
			findings.Warn(migrate.CodeOutsideEnd, "", "%s; both go on appending", other)
		case strings.HasPrefix(o.link, "anon_inode:") && !same:
			continue
		case f.Kind == image.FileObject && !h.holds(&o.st):
			continue // another one of the same name
		default:
			findings.Block(migrate.CodeOutsideEnd, "close it there, or start the process without inheriting it", "%s", other)
		}
		return // one is enough
	}
}

// holds reports whether a holder's descriptor is of a file.
func (h holder) holds(file *unix.Stat_t) bool {
	var st unix.Stat_t
	err := unix.Stat(procfs.Process{PID: h.pid}.Path(fmt.Sprintf("fd/%d", h.fd)), &st)
	return err == nil && idOf(&st) == idOf(file)
}

// sameDescription reports whether a holder's descriptor is a duplicate of one
// of the tree's.
func (s *sharing) sameDescription(o *openFile, h holder) (bool, error) {
	order, err := kcmp(s.tree[0], h.pid, kcmpFile, o.fd, h.fd)
	if err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.EBADF) {
		return false, err
	}
	return err == nil && order == 0, err
}

// checkObjects reports objects that a process outside the tree maps.
func (d *TreeDump) checkObjects(p procfs.Process) error {
	vmas, err := p.Maps()
	if err != nil {
		return err
	}
	reported := make(map[string]bool)
	for i := range vmas {
		v := &vmas[i]
		if !v.Shared || v.Inode == 0 || !strings.HasSuffix(v.Name, " (deleted)") {
			continue
		}
		if pids := d.sharing.maps[mapKey(v)]; len(pids) > 0 && !reported[mapKey(v)] {
			reported[mapKey(v)] = true
			d.Block(migrate.CodeOutsideEnd, "end the other process first", "memory %s at %#x of process %d is also mapped by process %d", v.Name, v.Start, p.PID, pids[0])
		}
	}
	return nil
}
