package resource

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"structs"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/parasite"
)

// epollFile: epoll(7). A registration belongs to an open file description and
// to the number under which it was registered, which may be closed or another
// description's by now.
var epollFile = fileKind{
	dump: func(*ProcessDump, *openFile, *image.File) error { return nil }, // dumpEpoll, when all others are known
	open: func(_ *TreeRestore, f *image.File) (int, error) {
		fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
		if err != nil {
			return 0, err
		}
		return fd, setStatusFlags(fd, f.Flags)
	},
	connect: restoreEpoll,
}

// dumpEpoll reads the registrations from lines like
//
//	tfd:        5 events:       19 data: ffffffff00000007  pos:0 ino:80d sdev:f
func dumpEpoll(d *ProcessDump, open []openFile, o *openFile, f *image.File) error {
	f.Epoll = []image.Watch{}
	device, err := socketDevice()
	if err != nil {
		return err
	}
	sockets := make(map[int]uint64) // the inodes of sockets, by their numbers
	for i := range open {
		if open[i].st.Mode&unix.S_IFMT == unix.S_IFSOCK {
			sockets[open[i].fd] = open[i].st.Ino
		}
	}
	same := make(map[int]int) // how often a number was met
	for _, line := range o.info.Lines {
		if line.Name != "tfd" {
			continue
		}
		w, of, err := parseWatch(line.Value)
		if err != nil {
			return err
		}
		// A socket has one open file description, which need not be looked for.
		if inode, is := sockets[w.FD]; is && of == (kernelFile{device, inode}) {
			w.File = d.fileOf(w.FD)
		} else {
			w.File, err = d.watched(o.fd, w.FD, same[w.FD])
		}
		same[w.FD]++
		if err != nil {
			return err
		}
		if w.File == image.None {
			d.Block(migrate.CodeDescriptor, "have the program unregister it", "%v, an epoll descriptor, watches a file that no descriptor of the process refers to any more", o)
			continue
		}
		f.Epoll = append(f.Epoll, w)
	}
	return nil
}

// A kernelFile is what the kernel tells of a registered file: its device, in its own
// encoding, and its inode.
type kernelFile struct{ device, inode uint64 }

// socketDevice is the device of all sockets.
func socketDevice() (uint64, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, err
	}
	const minorBits = 20 // include/linux/kdev_t.h
	return uint64(unix.Major(st.Dev))<<minorBits | uint64(unix.Minor(st.Dev)), nil
}

func parseWatch(value string) (w image.Watch, of kernelFile, err error) {
	// The number stands first, then names, each followed by its value.
	words := strings.Fields(strings.ReplaceAll(value, ":", ": "))
	w.File = image.None
	if len(words) == 0 {
		return w, of, fmt.Errorf("registration %q", value)
	}
	fd, err := strconv.ParseUint(words[0], 10, 31)
	w.FD = int(fd)
	errs := []error{err}
	for i := 1; i+1 < len(words); i++ {
		var err error
		switch words[i] {
		case "events:":
			var events uint64
			events, err = strconv.ParseUint(words[i+1], 16, 32)
			w.Events = uint32(events)
		case "data:":
			w.Data, err = strconv.ParseUint(words[i+1], 16, 64)
		case "ino:":
			of.inode, err = strconv.ParseUint(words[i+1], 16, 64)
		case "sdev:":
			of.device, err = strconv.ParseUint(words[i+1], 16, 64)
		}
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return w, of, fmt.Errorf("registration %q: %w", value, err)
	}
	return w, of, nil
}

// fileOf is what one of the process's descriptors refers to.
func (d *ProcessDump) fileOf(fd int) image.Index {
	all := d.Process.Descriptors // by their numbers
	if i, found := slices.BinarySearchFunc(all, fd, func(x image.Descriptor, fd int) int { return x.FD - fd }); found {
		return all[i].File
	}
	return image.None
}

// watched finds the file of a registration among the process's descriptors:
// most often it still has the number under which it was registered.
func (d *ProcessDump) watched(epoll, number, occurrence int) (image.Index, error) {
	if likely := d.fileOf(number); likely != image.None {
		if same, err := isWatched(d.Proc.PID, number, epoll, number, occurrence); err != nil || same {
			return likely, err
		}
	}
	for _, x := range d.Process.Descriptors {
		if same, err := isWatched(d.Proc.PID, x.FD, epoll, number, occurrence); err != nil || same {
			return x.File, err
		}
	}
	return image.None, nil
}

// eventABI is struct epoll_event, which is packed on this architecture
// (include/uapi/linux/eventpoll.h).
type eventABI struct {
	_      structs.HostLayout
	events uint32
	low    uint32
	high   uint32
}

func restoreEpoll(r *ProcessRestore, f *image.File, fd int) error {
	numbers := make(map[image.Index]int)
	occupant := make(map[int]image.Descriptor)
	for _, d := range r.Process.Descriptors {
		numbers[d.File] = d.FD
		occupant[d.FD] = d
	}
	spare := uintptr(r.Process.Descriptors[len(r.Process.Descriptors)-1].FD + 1)
	s := r.script()
	for _, w := range f.Epoll {
		add := func(b *parasite.Batch) {
			abi := eventABI{events: w.Events, low: uint32(w.Data), high: uint32(w.Data >> 32)}
			b.Call(unix.SYS_EPOLL_CTL, uintptr(fd), unix.EPOLL_CTL_ADD, uintptr(w.FD), parasite.Struct(b, &abi))
		}
		there, taken := occupant[w.FD]
		if taken && there.File == w.File {
			s.add(add)
			continue
		}
		number, ok := numbers[w.File]
		if !ok {
			return fmt.Errorf("no descriptor refers to what was registered as %d", w.FD)
		}
		// Give the description its former number for a moment.
		if taken {
			s.call(unix.SYS_DUP3, uintptr(w.FD), spare, 0)
		}
		s.call(unix.SYS_DUP3, uintptr(number), uintptr(w.FD), 0)
		s.add(add)
		if taken {
			s.call(unix.SYS_DUP3, spare, uintptr(w.FD), closeOnExec(there.CloExec))
			s.call(unix.SYS_CLOSE, spare)
		} else {
			s.call(unix.SYS_CLOSE, uintptr(w.FD))
		}
	}
	return s.run()
}

func closeOnExec(set bool) uintptr {
	if set {
		return unix.O_CLOEXEC
	}
	return 0
}
