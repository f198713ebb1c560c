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
	same map[int]holder      // of the tree's descriptors without a file of their own (anon_inode), who has them too
	held map[string]int      // a process that maps a file as shared memory or has a descriptor of it, by fileKey
}

// A holder is one descriptor of a process outside the tree.
type holder struct{ pid, fd int }

// NoteHolders looks at the descriptors and mappings of all processes of the host
// but those of the tree, which takes its time: it is to be called before the tree
// is stopped, and after it was put where everything that it starts from then on
// is seen. Memory that others map too is reported, and descriptors by the dump.
func (d *TreeDump) NoteHolders(tree []int) error {
	s := &sharing{tree: tree, fds: make(map[string][]holder), same: make(map[int]holder), held: make(map[string]int)}
	pids, err := procfs.All()
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if slices.Contains(s.tree, pid) {
			continue
		}
		// What is gone by then holds nothing, and what we hold is not for long.
		if pid != os.Getpid() {
			s.look(procfs.Process{PID: pid})
		}
		for _, member := range tree {
			d.checkShared(member, pid)
		}
	}
	d.sharing = s
	for _, pid := range tree {
		s.compare(procfs.Process{PID: pid})
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
		h := holder{p.PID, fd}
		link, err := p.Link(fmt.Sprintf("fd/%d", fd))
		if err != nil {
			continue
		}
		s.fds[link] = append(s.fds[link], h)
		if !strings.HasSuffix(link, " (deleted)") {
			continue // to look at a file may take as long as its file system likes
		}
		if st, err := h.stat(); err == nil {
			s.held[fileKey(unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino)] = p.PID
		}
	}
	vmas, err := p.Maps()
	if err != nil {
		return
	}
	for i := range vmas {
		if v := &vmas[i]; v.Shared && v.Inode != 0 {
			s.held[fileKey(v.Major, v.Minor, v.Inode)] = p.PID
		}
	}
}

// compare finds out who has a process's descriptors that all look alike, as those of
// eventfd(2) do: there may be thousands on a host, too many for a process that stands
// still.
func (s *sharing) compare(p procfs.Process) {
	fds, err := p.FDs()
	if err != nil {
		return
	}
	for _, fd := range fds {
		link, err := p.Link(fmt.Sprintf("fd/%d", fd))
		if err != nil || !strings.HasPrefix(link, "anon_inode:") {
			continue
		}
		for _, h := range s.fds[link] {
			if same, err := s.sameDescription(&openFile{pid: p.PID, fd: fd}, h); err == nil && same {
				s.same[fd] = h
				break
			}
		}
	}
}

func fileKey(major, minor uint32, inode uint64) string {
	return fmt.Sprintf("%x:%x:%d", major, minor, inode)
}

// checkShared reports what a process of the tree has in common with another one,
// as clone(2) makes it: threads that are processes, in a way.
func (d *TreeDump) checkShared(pid, other int) {
	for _, k := range []struct {
		kind int
		name string
	}{{kcmpVM, "its memory"}, {kcmpFiles, "its descriptors"}, {kcmpFS, "its working directory"}, {kcmpSighand, "its signal handlers"}} {
		if order, err := kcmp(pid, other, k.kind, 0, 0); err == nil && order == 0 {
			// One that ends has nothing by then, and has that in common with kernel threads.
			if stat, err := (procfs.Process{PID: pid}).Stat(); err != nil || stat.Exiting() {
				return
			}
			d.Block(migrate.CodeSharedKernel, "start it without sharing (clone(2))", "process %d shares %s with process %d", pid, k.name, other)
		}
	}
}

// check reports what of a description is in other hands. Files and devices
// are shared with everybody by their path; what matters there is a common
// position.
func (s *sharing) check(findings *Findings, o *openFile, f *image.File) {
	if s == nil || f.Kind == image.FileDevice || f.Kind == image.FilePath || f.Kind == image.FileDirectory {
		return
	}
	candidates := s.fds[o.link]
	if strings.HasPrefix(o.link, "anon_inode:") && o.in == nil {
		candidates = nil
		if h, ok := s.same[o.fd]; ok {
			candidates = []holder{h}
		}
	}
	for _, h := range candidates {
		same, err := s.sameDescription(o, h)
		if err != nil {
			continue // it is gone
		}
		other := fmt.Sprintf("%v, %s, is also held by process %d as %d", o, o.link, h.pid, h.fd)
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
	if pid, ok := s.held[fileKey(unix.Major(o.st.Dev), unix.Minor(o.st.Dev), o.st.Ino)]; ok && f.Kind == image.FileObject {
		findings.Block(migrate.CodeOutsideEnd, "end the other process first", "%v, %s, is of memory that process %d has, too", o, o.link, pid)
	}
}

// stat tells what a holder's descriptor is of.
func (h holder) stat() (st unix.Stat_t, err error) {
	err = unix.Stat(procfs.Process{PID: h.pid}.Path(fmt.Sprintf("fd/%d", h.fd)), &st)
	return st, err
}

// holds reports whether a holder's descriptor is of a file.
func (h holder) holds(file *unix.Stat_t) bool {
	st, err := h.stat()
	return err == nil && idOf(&st) == idOf(file)
}

// sameDescription reports whether a holder's descriptor is a duplicate of one
// of the tree's.
func (s *sharing) sameDescription(o *openFile, h holder) (bool, error) {
	order, err := kcmp(o.pid, h.pid, kcmpFile, o.fd, h.fd)
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
		key := fileKey(v.Major, v.Minor, v.Inode)
		if pid, ok := d.sharing.held[key]; ok && !reported[key] {
			reported[key] = true
			d.Block(migrate.CodeOutsideEnd, "end the other process first", "memory %s at %#x of process %d is in the hands of process %d, too", v.Name, v.Start, p.PID, pid)
		}
	}
	return nil
}
