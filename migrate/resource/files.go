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
	"github.com/pagurus-project/pagurus/parasite"
	"github.com/pagurus-project/pagurus/tcprepair"
)

// A fileKind is one kind of thing that a descriptor may refer to.
type fileKind struct {
	// dump reads what is special about an open file description.
	dump func(*ProcessDump, *openFile, *image.File) error
	// check says, at the destination's preflight, what would not work there.
	check func(*Check, *image.File)
	// open makes the description in this process; the shell then takes it over.
	open func(*TreeRestore, *image.File) (int, error)
	// connect does what can be done only when the shell's table is complete;
	// fd is a number that the description has there.
	connect func(r *ProcessRestore, f *image.File, fd int) error
}

var fileKinds = map[image.FileKind]fileKind{
	image.FileRegular:   regularFile,
	image.FileDirectory: regularFile,
	image.FilePath:      regularFile,
	image.FileDevice:    deviceFile,
	image.FileObject:    objectFile,
	image.FilePipe:      pipeEnd,
	image.FileEvent:     eventFile,
	image.FileTimer:     timerFile,
	image.FileSignal:    signalFile,
	image.FileSocket:    unixSocket,
	image.FileTCP:       tcpSocket,
	image.FileUDP:       udpSocket,
	image.FileNetlink:   netlinkSocket,
	image.FileRaw:       rawSocket,
	image.FilePacket:    packetSocket,
}

func init() {
	// These look into the table themselves.
	fileKinds[image.FileEpoll] = epollFile
	fileKinds[image.FileInotify] = inotifyFile
}

// An openFile is an open file description as it is found at the source: by a descriptor of a
// process of the tree, or by one of ours, if it is on its way in a socket.
type openFile struct {
	pid, fd int     // one of the descriptors that lead to it
	in      *Looked // what it is on its way in; nil: a process has it
	link    string  // what /proc/PID/fd/FD says
	st      unix.Stat_t
	info    procfs.FDInfo
	index   image.Index
	// A connection that was looked at, of which neither the device nor more of info is known.
	socket *tcprepair.Socket
}

func (o *openFile) String() string {
	if o.in != nil {
		return fmt.Sprintf("a descriptor that is on its way in %v", o.in)
	}
	return fmt.Sprintf("descriptor %d of process %d", o.fd, o.pid)
}

// path leads to the file itself.
func (o *openFile) path() string {
	return procfs.Process{PID: o.pid}.Path(fmt.Sprintf("fd/%d", o.fd))
}

// look reads what there is to read of any description.
func (o *openFile) look() (err error) {
	p := procfs.Process{PID: o.pid}
	if o.link, err = p.Link(fmt.Sprintf("fd/%d", o.fd)); err != nil {
		return err
	}
	if o.info, err = p.FDInfo(o.fd); err != nil {
		return err
	}
	if err := unix.Stat(o.path(), &o.st); err != nil {
		return fmt.Errorf("%v, %s: %w", o, o.link, err)
	}
	return nil
}

// borrow gets this process a descriptor of the same open file description. It
// is to be closed soon.
func (o *openFile) borrow() (int, error) { return borrow(o.pid, o.fd) }

// classify says of which kind a description is; false: of none that can move.
func (o *openFile) classify() (image.FileKind, bool) {
	const anon = "anon_inode:"
	if name, ok := strings.CutPrefix(o.link, anon); ok {
		kinds := map[string]image.FileKind{
			"[eventfd]": image.FileEvent, "[eventpoll]": image.FileEpoll, "[timerfd]": image.FileTimer,
			"[signalfd]": image.FileSignal, "inotify": image.FileInotify, "[inotify]": image.FileInotify,
		}
		kind, known := kinds[name]
		return kind, known
	}
	if o.info.Flags&unix.O_PATH != 0 {
		return image.FilePath, true
	}
	switch o.st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return image.FileRegular, true // or an object, which its dump finds out
	case unix.S_IFDIR:
		return image.FileDirectory, true
	case unix.S_IFIFO:
		return image.FilePipe, strings.HasPrefix(o.link, "pipe:[")
	case unix.S_IFCHR:
		return image.FileDevice, plainDevices[o.st.Rdev]
	case unix.S_IFSOCK:
		return image.FileSocket, true // or of another family, which its dump finds out
	}
	return "", false
}

// descriptors: the table of descriptors, and all that it refers to.
var descriptors = processKind{
	name:    "descriptors",
	dump:    dumpDescriptors,
	restore: restoreDescriptors,
}

func dumpDescriptors(d *ProcessDump) error {
	fds, err := d.Proc.FDs()
	if err != nil {
		return err
	}
	seen, err := d.lookAtOnce()
	if err != nil {
		return err
	}
	open := make([]openFile, len(fds))
	err = inParallel(len(fds), func(i int) error {
		if at, ok := seen[fds[i]]; ok {
			open[i] = at
			return nil
		}
		open[i] = openFile{pid: d.Proc.PID, fd: fds[i]}
		return open[i].look()
	})
	if err != nil {
		return err
	}
	for i := range open {
		o := &open[i]
		if err := d.noteFile(o); err != nil {
			return err
		}
		d.Process.Descriptors = append(d.Process.Descriptors, image.Descriptor{
			FD: o.fd, File: o.index, CloExec: o.info.Flags&unix.O_CLOEXEC != 0,
		})
	}
	d.then(func() error { return d.dumpLater(open) })
	return nil
}

// noteFile finds a description's place in the image, a new one if it was not met before.
func (d *ProcessDump) noteFile(o *openFile) (err error) {
	known, err := d.sameAs(o)
	if err != nil {
		return err
	}
	if known != nil {
		o.index = known.index
		return nil
	}
	if o.index, err = d.dumpFile(o); err != nil {
		return fmt.Errorf("%v, %s: %w", o, o.link, err)
	}
	d.open[o.link] = append(d.open[o.link], o)
	return nil
}

// sameAs finds the same description among those that were met. Only those that lead to the
// same file can be.
func (d *TreeDump) sameAs(o *openFile) (*openFile, error) {
	for _, other := range d.open[o.link] {
		order, err := kcmp(o.pid, other.pid, kcmpFile, o.fd, other.fd)
		if err != nil {
			return nil, fmt.Errorf("comparing %v and %v: %w", o, other, err)
		}
		if order == 0 {
			return other, nil
		}
	}
	return nil, nil
}

// dumpFile adds a description to the image. One that cannot move is reported.
func (d *ProcessDump) dumpFile(o *openFile) (image.Index, error) {
	f := image.File{
		Flags: o.info.Flags &^ unix.O_CLOEXEC, Position: max(o.info.Position, 0),
		Object: image.None, Pipe: image.None, Socket: image.None,
	}
	kind, known := o.classify()
	switch alone := o.in != nil && (kind == image.FileSocket || kind == image.FileEpoll); {
	case o.socket != nil:
		f.Kind, f.TCP = image.FileTCP, o.socket
		d.sharing.check(d.Findings, o, &f)
	case alone:
		d.Block(migrate.CodeDescriptor, "let the program receive it first, or keep it open until it is received", "%v is %s, which no process has open", o, o.link)
		kind, f.Path = image.FileDevice, os.DevNull
		f.Kind = kind
	case !known:
		d.blockFile(o)
		kind, f.Path = image.FileDevice, os.DevNull // so that reading can go on
	default:
		f.Kind = kind
		if err := d.dumpOwner(o, &f); err != nil {
			return 0, err
		}
		if err := fileKinds[kind].dump(d, o, &f); err != nil {
			return 0, err
		}
		d.dumpFileLocks(o, &f)
		if o.in != nil && len(f.Locks) > 0 {
			d.Block(migrate.CodeDescriptor, "let the program receive it first", "%v, %s, holds a lock, and no process has it open", o, o.link)
		}
		d.sharing.check(d.Findings, o, &f)
	}
	if f.Kind == "" {
		f.Kind = kind
	}
	d.image.Files = append(d.image.Files, f)
	return len(d.image.Files) - 1, nil
}

// blockFile reports a descriptor of a kind that cannot move, by the name that
// /proc gives it.
func (d *ProcessDump) blockFile(o *openFile) {
	hint := "close it before the move"
	switch o.st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		if strings.HasPrefix(o.link, "/dev/pts/") || strings.HasPrefix(o.link, "/dev/tty") {
			hint = "start it with its standard streams in files, or detached from the terminal"
		}
	case unix.S_IFIFO:
		hint = "named pipes cannot move yet"
	}
	d.Block(migrate.CodeDescriptor, hint, "%v is %s", o, o.link)
}

// dumpLater reads what needs all other descriptions to be known.
func (d *ProcessDump) dumpLater(open []openFile) error {
	if err := d.connectUnixSockets(); err != nil {
		return err
	}
	for i := range open {
		f := &d.image.Files[open[i].index]
		if f.Kind == image.FileEpoll && f.Epoll == nil {
			if err := dumpEpoll(d, open, &open[i], f); err != nil {
				return fmt.Errorf("%v: %w", &open[i], err)
			}
		}
	}
	return nil
}

// borrow gets this process a descriptor of what a process has as fd.
func borrow(pid, fd int) (int, error) {
	l := make(lender)
	defer l.close()
	if err := l.open(pid); err != nil {
		return 0, err
	}
	return l.borrow(pid, fd)
}

// A lender has processes open from which many descriptors are to be borrowed (pidfd_getfd(2)).
type lender map[int]int

// open adds one, unless it is there.
func (l lender) open(pid int) error {
	if _, ok := l[pid]; ok {
		return nil
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("opening process %d: %w", pid, err)
	}
	l[pid] = fd
	return nil
}

// borrow may be called from any goroutine. Of a process that is not open there are none (ESRCH).
func (l lender) borrow(pid, fd int) (int, error) {
	process, ok := l[pid]
	if !ok {
		return 0, fmt.Errorf("getting descriptor %d of process %d: %w", fd, pid, unix.ESRCH)
	}
	own, err := unix.PidfdGetfd(process, fd, 0)
	if err != nil {
		return 0, fmt.Errorf("getting descriptor %d of process %d: %w", fd, pid, err)
	}
	return own, nil
}

func (l lender) close() {
	for _, fd := range l {
		unix.Close(fd)
	}
}

// dumpOwner reads who gets signals from a descriptor (fcntl(2), F_GETOWN_EX).
func (d *ProcessDump) dumpOwner(o *openFile, f *image.File) error {
	if o.info.Flags&unix.O_PATH != 0 {
		return nil
	}
	fd, err := o.borrow()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	owner, err := fileOwner(fd)
	if err != nil {
		return fmt.Errorf("reading its owner: %w", err)
	}
	signal, err := unix.FcntlInt(uintptr(fd), unix.F_GETSIG, 0)
	if err != nil {
		return fmt.Errorf("reading its signal: %w", err)
	}
	if owner.ID == 0 && signal == 0 {
		return nil
	}
	if owner.ID != 0 && owner.ID != d.Proc.PID && !d.hasThread(owner.ID) {
		d.Block(migrate.CodeOutsideEnd, "give its signals to the process itself (F_SETOWN)", "%v sends signals to %d", o, owner.ID)
	}
	f.Owner = &image.Owner{Type: owner.Type, ID: owner.ID, Signal: signal}
	return nil
}

// A script is a sequence of remote calls of any length, of which each must
// succeed; it is run in as many batches as it takes.
type script struct {
	r     *ProcessRestore
	batch *parasite.Batch
	err   error
}

func (r *ProcessRestore) script() *script { return &script{r: r} }

// call adds one call without memory.
func (s *script) call(nr uintptr, args ...uintptr) {
	s.add(func(b *parasite.Batch) { b.Call(nr, args...) })
}

// add has f add one call, with at most scriptRoom bytes of memory.
func (s *script) add(f func(*parasite.Batch)) {
	if s.err != nil {
		return
	}
	if s.batch == nil || s.batch.Room() < scriptRoom {
		s.flush()
		s.batch = s.r.batch()
	}
	f(s.batch)
}

const scriptRoom = 8 << 10

func (s *script) flush() {
	if s.batch != nil && s.err == nil {
		s.err = s.batch.RunAll(s.r.Ctx)
	}
	s.batch = nil
}

// run makes what is left and returns the first error.
func (s *script) run() error {
	s.flush()
	return s.err
}

// restoreDescriptors opens everything in this process and hands it over to the
// shell, which has no descriptors yet: so the numbers that it gets are known.
func restoreDescriptors(r *ProcessRestore) error {
	if err := r.makeUnixSockets(); err != nil {
		return err
	}
	first := make(map[image.Index]int) // files of this process, in the order of handing over
	var order []image.Index
	highest := 0
	for _, d := range r.Process.Descriptors {
		if _, ok := first[d.File]; !ok {
			first[d.File] = len(order)
			order = append(order, d.File)
			if err := r.openFile(d.File); err != nil {
				return err
			}
		}
		highest = max(highest, d.FD)
	}
	if err := r.fillUnixSockets(); err != nil {
		return err
	}
	if len(order) == 0 {
		return nil
	}
	base := max(highest+1, len(order)+1)
	if err := r.raiseDescriptorLimit(base + len(order)); err != nil {
		return err
	}
	s := r.script()
	s.call(unix.SYS_PIDFD_OPEN, uintptr(os.Getpid()), 0) // becomes 0
	for _, file := range order {                         // become 1, 2, ...
		s.call(unix.SYS_PIDFD_GETFD, 0, uintptr(r.files[file]), 0)
	}
	for i := range order {
		s.call(unix.SYS_DUP3, uintptr(i+1), uintptr(base+i), 0)
	}
	s.call(unix.SYS_CLOSE_RANGE, 0, uintptr(len(order)), 0)
	for _, d := range r.Process.Descriptors {
		flags := 0
		if d.CloExec {
			flags = unix.O_CLOEXEC
		}
		s.call(unix.SYS_DUP3, uintptr(base+first[d.File]), uintptr(d.FD), uintptr(flags))
	}
	s.call(unix.SYS_CLOSE_RANGE, uintptr(base), uintptr(base+len(order)-1), 0)
	if err := s.run(); err != nil {
		return fmt.Errorf("handing descriptors over: %w", err)
	}
	return r.connectFiles()
}

// raiseDescriptorLimit lets the shell have n descriptors while it is built.
func (r *ProcessRestore) raiseDescriptorLimit(n int) error {
	limit := limitABI{soft: ownHardLimit(unix.RLIMIT_NOFILE), hard: ownHardLimit(unix.RLIMIT_NOFILE)}
	if uint64(n) > limit.hard {
		return fmt.Errorf("%d descriptors are needed, the agent's limit is %d", n, limit.hard)
	}
	b := r.batch()
	b.Call(unix.SYS_PRLIMIT64, 0, unix.RLIMIT_NOFILE, parasite.Struct(b, &limit), 0)
	return b.RunAll(r.Ctx)
}

// openFile makes an open file description in this process, once.
func (r *TreeRestore) openFile(index image.Index) error {
	if _, ok := r.files[index]; ok {
		return nil
	}
	f := &r.Image.Files[index]
	fd, err := fileKinds[f.Kind].open(r, f)
	if err != nil {
		return fmt.Errorf("opening %s %s: %w", f.Kind, f.Path, err)
	}
	r.files[index] = fd
	if f.Owner != nil {
		err = errors.Join(setFileOwner(fd, f.Owner), setFileSignal(fd, f.Owner.Signal))
	}
	if err != nil {
		return fmt.Errorf("setting the owner of %s %s: %w", f.Kind, f.Path, err)
	}
	return errors.Join(setFileLocks(fd, f, false)...)
}

func setFileSignal(fd, signal int) error {
	_, err := unix.FcntlInt(uintptr(fd), unix.F_SETSIG, signal)
	return err
}

// connectFiles does what needs the complete table.
func (r *ProcessRestore) connectFiles() error {
	done := make(map[image.Index]bool)
	for _, d := range r.Process.Descriptors {
		f := &r.Image.Files[d.File]
		if k := fileKinds[f.Kind]; k.connect != nil && !done[d.File] {
			if err := k.connect(r, f, d.FD); err != nil {
				return fmt.Errorf("descriptor %d: %w", d.FD, err)
			}
		}
		done[d.File] = true
	}
	for _, index := range passedAlone(r.Image) {
		if f := &r.Image.Files[index]; fileKinds[f.Kind].connect != nil && !done[index] {
			if err := r.connectPassed(index, f); err != nil {
				return fmt.Errorf("a descriptor on its way, %s: %w", f.Kind, err)
			}
		}
		done[index] = true
	}
	return nil
}

// passedAlone lists the descriptions that are on their way in a socket, and that no process has
// open.
func passedAlone(m *image.Image) (all []image.Index) {
	held := make(map[image.Index]bool)
	for i := range m.Processes {
		for _, d := range m.Processes[i].Descriptors {
			held[d.File] = true
		}
	}
	for i := range m.Sockets {
		for _, q := range m.Sockets[i].Queue {
			all = append(all, slices.DeleteFunc(slices.Clone(q.Passed), func(f image.Index) bool { return held[f] })...)
		}
	}
	return all
}

// connectPassed does what needs a number in the shell for a description that has none there.
func (r *ProcessRestore) connectPassed(index image.Index, f *image.File) error {
	call := func(nr uintptr, args ...uintptr) (uintptr, error) { return r.leader().Syscall(r.Ctx, nr, args...) }
	ours, err := call(unix.SYS_PIDFD_OPEN, uintptr(os.Getpid()), 0)
	if err != nil {
		return err
	}
	fd, err := call(unix.SYS_PIDFD_GETFD, ours, uintptr(r.files[index]), 0)
	if err == nil {
		err = fileKinds[f.Kind].connect(r, f, int(fd))
		_, closing := call(unix.SYS_CLOSE, fd)
		err = errors.Join(err, closing)
	}
	_, closing := call(unix.SYS_CLOSE, ours)
	return errors.Join(err, closing)
}

// flagged gives what was made for a file its flags, or closes it.
func flagged(f *image.File, fd int, err error) (int, error) {
	if err != nil {
		return 0, err
	}
	if err := setStatusFlags(fd, f.Flags); err != nil {
		return 0, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// setStatusFlags gives a description that was not opened by a path its flags.
func setStatusFlags(fd, flags int) error {
	const settable = unix.O_APPEND | unix.O_ASYNC | unix.O_DIRECT | unix.O_NOATIME | unix.O_NONBLOCK
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, flags&settable); err != nil {
		return fmt.Errorf("setting flags %#o: %w", flags, err)
	}
	return nil
}
