package resource

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/migrate/procfs"
	"github.com/pagurus-project/pagurus/tcprepair/udp"
)

// A Looked is a socket whose queue is looked at: meanwhile some of its options are not what
// they were. It is plain data, to be kept for who takes over from an agent that died.
type Looked struct {
	PID     int            `json:"pid"`
	FD      int            `json:"fd"` // one of its descriptors there
	Options []image.Option `json:"options"`
}

func (l Looked) String() string { return fmt.Sprintf("descriptor %d of process %d", l.FD, l.PID) }

// ToLookAt lists those of an image that DumpQueues will look at.
func ToLookAt(m *image.Image) []Looked {
	var all []Looked
	eachFile(m, func(pid, fd int, f *image.File) {
		l := Looked{PID: pid, FD: fd}
		switch {
		case f.UDP != nil:
			for _, o := range f.UDP.Options {
				if udp.Changes(&o) {
					l.Options = append(l.Options, image.Option{Level: o.Level, Name: o.Name, Value: o.Value})
				}
			}
		case hasQueue(m, f):
			for _, o := range m.Sockets[f.Socket].Options {
				if o.Name == unix.SO_PEEK_OFF {
					l.Options = append(l.Options, o)
				}
			}
		default:
			return
		}
		all = append(all, l)
	})
	return all
}

// hasQueue reports a unix socket to which something can have come that its program reads.
func hasQueue(m *image.Image, f *image.File) bool {
	if f.Kind != image.FileSocket {
		return false
	}
	s := &m.Sockets[f.Socket]
	return s.Type == unix.SOCK_DGRAM || s.Peer != image.None || s.Ended
}

// DumpQueues reads what has come for the UDP and unix sockets of the image and was not read yet,
// and what is on its way there. Their processes do not run any more. It stays there.
func (d *TreeDump) DumpQueues(ctx context.Context) error {
	m := d.image
	type queue struct {
		at  Looked
		all []arrived
	}
	queues := make([]queue, len(m.Sockets))
	defer func() {
		for _, q := range queues {
			closePassed(q.all)
		}
	}()
	all := heldFiles(m, func(f *image.File) bool { return f.UDP != nil || hasQueue(m, f) })
	err := inParallel(len(all), func(i int) error {
		f := all[i]
		own, err := borrow(f.pid, f.fd)
		if err != nil {
			return err
		}
		defer unix.Close(own)
		if f.UDP != nil {
			f.UDP.Queue, err = udp.Queue(own)
		} else {
			s, q := &m.Sockets[f.Socket], &queues[f.Socket]
			q.at = Looked{PID: f.pid, FD: f.fd}
			q.all, err = socketQueue(own, s.Type, s.Ended || s.Shutdown&shutReceive != 0)
		}
		if err != nil {
			return fmt.Errorf("reading the queue of descriptor %d of process %d: %w", f.fd, f.pid, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for i := range queues {
		for _, a := range queues[i].all {
			if err := d.notePassed(ctx, &a, &queues[i].at); err != nil {
				return err
			}
			m.Sockets[i].Queue = append(m.Sockets[i].Queue, a.Message)
		}
	}
	m.Objects = slices.Clone(d.objects) // one may be on its way alone
	return nil
}

// notePassed finds the places in the image of what is on its way with a message.
func (d *TreeDump) notePassed(ctx context.Context, a *arrived, in *Looked) error {
	p := &d.image.Processes[0] // which of them has the socket makes no difference
	pd := &ProcessDump{TreeDump: d, Proc: procfs.Process{PID: p.PID}, Process: p}
	for _, fd := range a.passed {
		o := &openFile{pid: os.Getpid(), fd: fd, in: in}
		if err := o.look(); err != nil {
			return err
		}
		if err := pd.noteFile(o); err != nil {
			return err
		}
		// What is on its way alone has not been seen while the process ran.
		if o.st.Size <= maxFrozenDigested {
			if err := d.AddDigests(ctx, d.image.Files[o.index:o.index+1]); err != nil {
				return err
			}
		}
		a.Passed = append(a.Passed, o.index)
	}
	return pd.runAfter()
}

// Unlook gives sockets their options back that DumpQueues may have changed, before their
// processes run. It may be repeated. What is lost is returned.
func Unlook(all []Looked) (lost []error) {
	for _, l := range all {
		own, err := borrow(l.PID, l.FD)
		if errors.Is(err, unix.ESRCH) {
			continue // the process was killed
		}
		if err != nil {
			lost = append(lost, fmt.Errorf("%v: %w", l, err))
			continue
		}
		for _, o := range l.Options {
			if err := unix.SetsockoptString(own, o.Level, o.Name, string(o.Value)); err != nil {
				lost = append(lost, fmt.Errorf("%v: option %d: %w", l, o.Name, err))
			}
		}
		unix.Close(own)
	}
	return lost
}
