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
type glances map[int]glance

type glance struct {
	descriptor procfs.Descriptor
	socket     *tcprepair.Socket
}

// lookAtOnce finds them. Of a process that runs there are none, and none if the kernel does not
// show them so.
func (d *ProcessDump) lookAtOnce() (glances, error) {
	if d.Inspect || d.readers.Descriptors == nil || d.readers.Sockets == nil {
		return nil, nil
	}
	all, err := d.readers.Descriptors.Read(d.Proc)
	if err != nil {
		return nil, err
	}
	seen := make(glances)
	for _, x := range all {
		if x.TCP == nil || x.Special {
			continue
		}
		ours, err := d.isOwnNetwork(x.Network)
		if err != nil {
			return nil, err
		}
		g := d.readers.Sockets.Glance(x.TCP, x.UID, x.GID)
		if !ours || g == nil {
			continue
		}
		if err := d.settings.Complete(g, func() (int, error) { return d.borrow(x.FD) }); err != nil {
			return nil, fmt.Errorf("descriptor %d, the TCP connection of %v and %v: %w", x.FD, g.Socket.Local, g.Socket.Remote, err)
		}
		seen[x.FD] = glance{x, g.Socket}
	}
	return seen, nil
}

// openFile is what else was seen.
func (g *glance) openFile() openFile {
	x := &g.descriptor
	o := openFile{fd: x.FD, link: fmt.Sprintf("socket:[%d]", x.Inode), socket: g.socket}
	o.st.Ino, o.st.Mode, o.st.Uid, o.st.Gid = x.Inode, x.Mode, x.UID, x.GID
	o.info = procfs.FDInfo{Flags: x.Flags, Inode: x.Inode}
	if x.CloExec {
		o.info.Flags |= unix.O_CLOEXEC
	}
	return o
}
