package resource

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/tcprepair/inet"
	"github.com/pagurus-project/pagurus/tcprepair/raw"
)

// rawSocket: a raw socket (raw(7)) or one of ping (icmp(7)). It is left as it is at the
// source, with what has come for it and was not read, which is lost when the process goes.
var rawSocket = fileKind{
	check: func(c *Check, f *image.File) {
		err := raw.CanBind(f.Raw, comesAlong(c.Image, f))
		if f.Raw.Ping && errors.Is(err, unix.EACCES) {
			c.Block(migrate.CodeDescriptor, "widen net.ipv4.ping_group_range there, or choose another host", "the process has %v, and the host lets no process of the agent's group have one", f.Raw)
			return
		}
		c.mustBind(f.Raw.Local, err)
		c.mustHaveDevices(f.Raw.String(), devicesOf(f.Raw.Devices, f.Raw.Memberships))
	},
	open: func(r *TreeRestore, f *image.File) (int, error) {
		fd, err := raw.Restore(f.Raw, comesAlong(r.Image, f))
		return flagged(f, fd, err)
	},
}

// dumpRaw reads one, by fd, a descriptor of ours.
func dumpRaw(d *ProcessDump, f *image.File, fd int, refuse func(what, hint string)) error {
	if elsewhere, err := d.isElsewhere(fd, "a raw or ping socket", refuse); elsewhere || err != nil {
		return err
	}
	s, err := raw.Look(fd)
	switch {
	case errors.Is(err, inet.ErrUnsupported):
		refuse(err.Error(), "close it before the move")
		return nil
	case err != nil:
		return fmt.Errorf("reading a raw or ping socket: %w", err)
	}
	f.Kind, f.Raw = image.FileRaw, s
	if d.Inspect {
		return nil
	}
	if f.Unread, err = inet.Unread(fd); err != nil {
		return err
	}
	return sent(fd, s.String())
}

// unread tells what of an image's raw, ping and packet sockets is left behind.
func unread(m *image.Image) (all []string) {
	sockets, bytes := 0, 0
	for i := range m.Files {
		if n := m.Files[i].Unread; n > 0 {
			sockets, bytes = sockets+1, bytes+n
		}
	}
	if sockets > 0 {
		all = append(all, fmt.Sprintf("packets that %d raw, ping or packet sockets had not read (%d bytes of memory)", sockets, bytes))
	}
	return all
}

// warnUnread tells that packets of those sockets will be lost.
func (d *TreeDump) warnUnread(m *image.Image) {
	n := len(slices.DeleteFunc(slices.Clone(m.Files), func(f image.File) bool { return f.Raw == nil && f.Packet == nil }))
	if n > 0 {
		d.Warn(migrate.CodeDegraded, "", "of %d raw, ping or packet sockets, packets that were not read when the process is stopped are lost, "+
			"and those that come while it stands still; what PACKET_STATISTICS counts begins anew", n)
	}
}
