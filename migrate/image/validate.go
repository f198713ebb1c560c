package image

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
)

// Bounds of single values.
const (
	maxAddress  = 1<<47 - PageSize // the end of user space with four-level page tables
	maxID       = 1 << 22          // PIDs and TIDs (PID_MAX_LIMIT)
	maxFD       = 1 << 30
	maxPath     = 4096
	maxSignal   = 64
	maxXState   = 16 << 10
	sigInfoSize = 128
	maxPipe     = 1 << 30

	maxPassed     = 253 // SCM_MAX_FD (include/net/scm.h)
	maxSocketName = 108 // UNIX_PATH_MAX (include/uapi/linux/un.h)
)

// ErrInvalid says that an image contradicts itself or its bounds.
var ErrInvalid = errors.New("invalid image")

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrInvalid, fmt.Sprintf(format, args...))
}

// Validate checks every range, order and reference.
func (m *Image) Validate() error {
	if m.Version != Version {
		return fmt.Errorf("image has format version %d, this program knows %d", m.Version, Version)
	}
	if len(m.Processes) == 0 {
		return invalid("no processes")
	}
	spaces := make(map[uint32]bool)
	if err := validateObjects(m.Objects, spaces); err != nil {
		return err
	}
	for i := range m.Files {
		if err := m.validateFile(&m.Files[i]); err != nil {
			return fmt.Errorf("file %d: %w", i, err)
		}
	}
	for i, p := range m.Pipes {
		held := 0
		for _, piece := range p.Content {
			held += len(piece)
		}
		if p.Bytes < 0 || p.Bytes > maxPipe || held > p.Bytes {
			return invalid("pipe %d holds %d of %d bytes", i, held, p.Bytes)
		}
	}
	for i, s := range m.Sockets {
		if s.Peer < None || s.Peer >= len(m.Sockets) {
			return invalid("socket %d has peer %d of %d", i, s.Peer, len(m.Sockets))
		}
		if s.To < None || s.To >= len(m.Sockets) || s.Backlog < 0 || s.Listens && (s.Ended || s.Peer != None) {
			return invalid("socket %d sends to %d of %d, or listens with a connection", i, s.To, len(m.Sockets))
		}
		if len(s.Name) > maxSocketName || len(s.ToName) > maxSocketName {
			return invalid("socket %d has a name of %d bytes, and sends to one of %d", i, len(s.Name), len(s.ToName))
		}
		for _, q := range s.Queue {
			if len(q.Passed) > maxPassed || slices.ContainsFunc(q.Passed, func(f Index) bool { return f < 0 || f >= len(m.Files) }) {
				return invalid("socket %d has a message with %d descriptors of %d files", i, len(q.Passed), len(m.Files))
			}
		}
		connected := s.Ended || s.Peer != None
		if s.Accepted && (!connected || len(s.Name) == 0 || s.Name[0] != 0 || s.Peer != None && m.Sockets[s.Peer].Accepted) {
			return invalid("socket %d was accepted without a connection or a name, or as its peer was", i)
		}
		if s.File != nil {
			if err := validatePath(s.File.Path); err != nil {
				return fmt.Errorf("socket %d: %w", i, err)
			}
		}
	}
	if m.Waiting < 0 {
		return invalid("%d connections that wait", m.Waiting)
	}
	if err := m.TimeWaits.validate(); err != nil {
		return err
	}
	for _, p := range m.Addresses {
		if !p.IsValid() {
			return invalid("a service address that is none")
		}
	}
	ids := make(map[int]bool)
	for i := range m.Processes {
		p := &m.Processes[i]
		if err := p.validate(m, spaces, ids); err != nil {
			return fmt.Errorf("process %d: %w", p.PID, err)
		}
	}
	return nil
}

// Validate checks every range, order and reference of a layout.
func (l *Layout) Validate() error {
	if l.Round < 0 {
		return invalid("round %d", l.Round)
	}
	spaces := make(map[uint32]bool)
	if err := validateObjects(l.Objects, spaces); err != nil {
		return err
	}
	for i := range l.Files {
		if err := validatePath(l.Files[i].Path); err != nil {
			return fmt.Errorf("file %d: %w", i, err)
		}
	}
	ids := make(map[int]bool)
	for _, p := range l.Processes {
		if err := claimSpace(spaces, p.Space); err != nil {
			return err
		}
		if err := validateMappings(p.Mappings, len(l.Files), len(l.Objects)); err != nil {
			return fmt.Errorf("process %d: %w", p.PID, err)
		}
		if err := claimIDs(ids, p.PID, p.Threads); err != nil {
			return err
		}
	}
	return nil
}

func validateObjects(objects []Object, spaces map[uint32]bool) error {
	for i, o := range objects {
		switch o.Kind {
		case ObjectSharedAnonymous, ObjectMemfd, ObjectDeletedFile:
		default:
			return invalid("object %d is of unknown kind %q", i, o.Kind)
		}
		if o.Bytes > 1<<62 || o.Held > 1<<62 {
			return invalid("object %d has %d bytes and holds %d", i, o.Bytes, o.Held)
		}
		if len(o.Name) > maxPath || strings.ContainsRune(o.Name, 0) {
			return invalid("object %d has an unusable name", i)
		}
		if o.Kind == ObjectDeletedFile {
			if err := validatePath(o.Name); err != nil {
				return fmt.Errorf("object %d: %w", i, err)
			}
		}
		if err := claimSpace(spaces, o.Space); err != nil {
			return err
		}
	}
	return nil
}

func claimSpace(spaces map[uint32]bool, space uint32) error {
	if space == 0 || spaces[space] {
		return invalid("space %d is used twice or zero", space)
	}
	spaces[space] = true
	return nil
}

// claimIDs checks that the ids of a process and its threads, the leader first,
// are in range and used once.
func claimIDs(ids map[int]bool, pid int, tids []int) error {
	if len(tids) == 0 || tids[0] != pid {
		return invalid("process %d: its first thread is not its leader", pid)
	}
	for _, tid := range tids {
		if tid <= 1 || tid >= maxID || ids[tid] {
			return invalid("id %d is used twice or out of range", tid)
		}
		ids[tid] = true
	}
	return nil
}

// validatePath accepts absolute, clean paths.
func validatePath(p string) error {
	if len(p) == 0 || len(p) > maxPath || strings.ContainsRune(p, 0) || !path.IsAbs(p) || path.Clean(p) != p {
		return invalid("path %q", p)
	}
	return nil
}

func validateRange(r AddressRange) error {
	if r.Start >= r.End || r.End > maxAddress || r.Start%PageSize != 0 || r.End%PageSize != 0 {
		return invalid("address range %#x-%#x", r.Start, r.End)
	}
	return nil
}

func validateMappings(mappings []Mapping, files, objects int) error {
	var end uint64
	for i := range mappings {
		m := &mappings[i]
		if err := validateRange(m.AddressRange); err != nil {
			return err
		}
		if m.Start < end {
			return invalid("mapping at %#x overlaps the one before", m.Start)
		}
		end = m.End
		if m.Prot&^7 != 0 || m.Flags >= flagsEnd || m.Offset%PageSize != 0 || m.Offset > 1<<62 || len(m.Name) > maxPath || strings.ContainsRune(m.Name, 0) {
			return invalid("mapping at %#x has impossible properties", m.Start)
		}
		for _, f := range m.Fresh {
			if err := validateRange(f); err != nil || f.Start < m.Start || f.End > m.End {
				return invalid("mapping at %#x has a fresh range %#x-%#x", m.Start, f.Start, f.End)
			}
		}
		ok := false
		switch m.Backing {
		case BackingAnonymous:
			ok = !m.Shared
		case BackingFile:
			ok = m.File >= 0 && m.File < files
		case BackingObject:
			ok = m.Object >= 0 && m.Object < objects
		case BackingKernel:
			ok = strings.HasPrefix(m.Name, "[")
		}
		if !ok {
			return invalid("mapping at %#x has backing %q that does not fit", m.Start, m.Backing)
		}
	}
	return nil
}

func (m *Image) validateFile(f *File) error {
	within := func(i Index, n int) bool { return i >= 0 && i < n }
	ok := false
	switch f.Kind {
	case FileRegular, FileDirectory, FilePath:
		ok = f.Identity != nil && validatePath(f.Path) == nil
	case FileDevice:
		ok = validatePath(f.Path) == nil
	case FileObject:
		ok = within(f.Object, len(m.Objects))
	case FilePipe:
		ok = within(f.Pipe, len(m.Pipes))
	case FileSocket:
		ok = within(f.Socket, len(m.Sockets))
	case FileTCP:
		ok = f.TCP != nil && f.TCP.Validate() == nil
	case FileUDP:
		ok = f.UDP != nil && f.UDP.Validate() == nil
	case FileNetlink:
		ok = f.Netlink != nil
	case FileRaw:
		ok = f.Raw != nil && f.Raw.Validate() == nil && f.Unread >= 0
	case FilePacket:
		ok = f.Packet != nil && f.Packet.Validate() == nil && f.Unread >= 0
	case FileEvent:
		ok = f.Event != nil
	case FileTimer:
		ok = f.Timer != nil && f.Timer.Value >= 0 && f.Timer.Interval >= 0
	case FileInotify:
		ok = f.Inotify != nil
	case FileSignal:
		ok = true
	case FileEpoll:
		ok = true
		for _, w := range f.Epoll {
			ok = ok && w.FD >= 0 && w.FD < maxFD && within(w.File, len(m.Files))
		}
	}
	if !ok || f.Position < 0 {
		return invalid("%q with parts missing or out of range", f.Kind)
	}
	if f.Inotify != nil {
		for _, w := range f.Inotify.Watches {
			if err := validatePath(w.Path); err != nil || w.Number <= 0 {
				return invalid("inotify watch %d on %q", w.Number, w.Path)
			}
		}
	}
	return validateLocks(f.Locks, len(m.Files), false)
}

func validateLocks(locks []Lock, files int, posix bool) error {
	for _, l := range locks {
		if (l.Kind == LockPOSIX) != posix || l.Start < 0 || l.Len < 0 || posix && (l.File < 0 || l.File >= files) {
			return invalid("lock of kind %q at %d for %d bytes", l.Kind, l.Start, l.Len)
		}
	}
	return nil
}

func (p *Process) validate(m *Image, spaces map[uint32]bool, ids map[int]bool) error {
	tids := make([]int, len(p.Threads))
	for i := range p.Threads {
		tids[i] = p.Threads[i].TID
	}
	if err := claimIDs(ids, p.PID, tids); err != nil {
		return err
	}
	if err := claimSpace(spaces, p.Memory.Space); err != nil {
		return err
	}
	if err := p.Memory.validate(m); err != nil {
		return err
	}
	if err := errors.Join(validatePath(p.Root), validatePath(p.Cwd)); err != nil {
		return err
	}
	last := -1
	for _, d := range p.Descriptors {
		if d.FD <= last || d.FD >= maxFD || d.File < 0 || d.File >= len(m.Files) {
			return invalid("descriptor %d of file %d", d.FD, d.File)
		}
		last = d.FD
	}
	if err := validateLocks(p.Locks, len(m.Files), true); err != nil {
		return err
	}
	for _, a := range p.Actions {
		if a.Signal < 1 || a.Signal > maxSignal {
			return invalid("action of signal %d", a.Signal)
		}
	}
	if err := validateSignals(p.Pending); err != nil {
		return err
	}
	for _, t := range p.IntervalTimers {
		if t.Which < 0 || t.Which > 2 || t.Value < 0 || t.Interval < 0 {
			return invalid("interval timer %d", t.Which)
		}
	}
	for _, t := range p.Timers {
		if t.ID < 0 || t.Value < 0 || t.Interval < 0 {
			return invalid("timer %d", t.ID)
		}
	}
	if len(p.Limits) > 64 || len(p.Switches) > 64 {
		return invalid("%d limits, %d switches", len(p.Limits), len(p.Switches))
	}
	for i := range p.Threads {
		if err := p.Threads[i].validate(); err != nil {
			return fmt.Errorf("thread %d: %w", p.Threads[i].TID, err)
		}
	}
	return nil
}

func (mem *Memory) validate(m *Image) error {
	if err := validateMappings(mem.Mappings, len(m.Files), len(m.Objects)); err != nil {
		return err
	}
	if mem.Exe < None || mem.Exe >= len(m.Files) {
		return invalid("executable is file %d", mem.Exe)
	}
	for _, g := range mem.Guards {
		if err := validateRange(g); err != nil {
			return err
		}
	}
	if len(mem.Auxv) > 16*64 {
		return invalid("auxiliary vector of %d bytes", len(mem.Auxv))
	}
	return nil
}

func (t *Thread) validate() error {
	if len(t.Name) > 15 || len(t.XState) > maxXState || len(t.Affinity) > 1024 {
		return invalid("name of %d bytes, vector state of %d, affinity of %d", len(t.Name), len(t.XState), len(t.Affinity))
	}
	if len(t.Credentials.Groups) > 65536 {
		return invalid("%d groups", len(t.Credentials.Groups))
	}
	for _, f := range t.Filters {
		// BPF_MAXINSNS instructions of eight bytes (include/uapi/linux/bpf_common.h).
		if len(f.Program) == 0 || len(f.Program)%8 != 0 || len(f.Program) > 4096*8 {
			return invalid("seccomp filter of %d bytes", len(f.Program))
		}
	}
	return validateSignals(t.Pending)
}

func validateSignals(infos [][]byte) error {
	for _, info := range infos {
		if len(info) != sigInfoSize {
			return invalid("signal of %d bytes", len(info))
		}
	}
	return nil
}
