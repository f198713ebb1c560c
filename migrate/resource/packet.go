package resource

import (
	"errors"
	"fmt"
	"net"

	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/tcprepair/inet"
	"github.com/pagurus-project/pagurus/tcprepair/packet"
)

// packetSocket: a packet socket (packet(7)). It is left as it is at the source, with what it
// has taken and was not read. At the destination it takes what that host's devices see.
var packetSocket = fileKind{
	check: func(c *Check, f *image.File) {
		s := f.Packet
		c.mustHaveDevices("a packet socket of the process", s.Devices())
		if device, err := net.InterfaceByName(s.Device); err == nil && device.Flags&net.FlagUp == 0 {
			c.Block(migrate.CodeDescriptor, "bring it up there, or choose another host", "a packet socket of the process is bound to the network device %s, which is down there", s.Device)
		}
	},
	open: func(_ *TreeRestore, f *image.File) (int, error) {
		fd, err := packet.Restore(f.Packet)
		return flagged(f, fd, err)
	},
}

// dumpPacket reads one, by fd, a descriptor of ours.
func dumpPacket(d *ProcessDump, f *image.File, fd int, refuse func(what, hint string)) error {
	if elsewhere, err := d.isElsewhere(fd, "a packet socket", refuse); elsewhere || err != nil {
		return err
	}
	s, err := packet.Look(fd)
	switch {
	case errors.Is(err, inet.ErrUnsupported):
		refuse(err.Error(), "close it before the move")
		return nil
	case err != nil:
		return fmt.Errorf("reading a packet socket: %w", err)
	}
	f.Kind, f.Packet = image.FilePacket, s
	if !d.Inspect {
		f.Unread, err = inet.Unread(fd)
	}
	return err
}
