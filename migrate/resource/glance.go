package resource

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate/procfs"
	"github.com/pagurus-project/pagurus/tcprepair"
)

// glances are what the descriptors of a process that stands still show at once, of those that
// are plain connections: there may be thousands, and each would be read with a hundred
// system calls.
type glances map[int]openFile

// lookAtOnce finds them. Of a process that runs there are none, and none if the kernel does not
// show them so.
func (d *ProcessDump) lookAtOnce() (glances, error) {
	if d.Inspect || d.readers.Descriptors == nil || d.readers.Sockets == nil {
		return nil, nil
	}
	seen := make(glances)
	var failed error
	err := d.readers.Descriptors.Each(d.Proc, func(x *procfs.Descriptor) error {
		failed = d.glance(seen, x)
		return failed
	})
	if err != nil && failed == nil {
		return nil, nil // each is asked, then
	}
	return seen, failed
}

// glance adds one to those that were seen, if it is a plain connection.
func (d *ProcessDump) glance(seen glances, x *procfs.Descriptor) error {
	if x.TCP == nil || x.Special {
		return nil
	}
	ours, err := d.isOwnNetwork(x.Network)
	if err != nil {
		return err
	}
	g := d.readers.Sockets.Glance(x.TCP, x.UID, x.GID)
	if !ours || g == nil {
		return nil
	}
	if err := d.settings.Complete(g, func() (int, error) { return borrow(d.Proc.PID, x.FD) }); err != nil {
		return fmt.Errorf("descriptor %d, the TCP connection of %v and %v: %w", x.FD, g.Socket.Local, g.Socket.Remote, err)
	}
	seen[x.FD] = connectionAt(d.Proc.PID, x, g.Socket)
	return nil
}

// connectionAt is all that was seen.
func connectionAt(pid int, x *procfs.Descriptor, s *tcprepair.Socket) openFile {
	o := openFile{pid: pid, fd: x.FD, link: fmt.Sprintf("socket:[%d]", x.Inode), socket: s}
	o.st.Ino, o.st.Mode, o.st.Uid, o.st.Gid = x.Inode, x.Mode, x.UID, x.GID
	o.info = procfs.FDInfo{Flags: x.Flags, Inode: x.Inode}
	if x.CloExec {
		o.info.Flags |= unix.O_CLOEXEC
	}
	return o
}
