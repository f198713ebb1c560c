package resource

import (
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/tcprepair/inet"
	"github.com/pagurus-project/pagurus/tcprepair/udp"
)

// udpSocket: a socket of UDP (udp(7)). It is left as it is at the source; what has come and
// was not read is read when nothing comes any more (datagrams.go).
var udpSocket = fileKind{
	check: func(c *Check, f *image.File) {
		c.mustBind(f.UDP.Local, udp.CanBind(f.UDP, comesAlong(c.Image, f)))
		c.mustHaveDevices(fmt.Sprintf("a UDP socket of the process, at %v,", f.UDP.Local), devicesOf(f.UDP.Devices, f.UDP.Memberships))
	},
	open: func(r *TreeRestore, f *image.File) (int, error) {
		fd, err := udp.Restore(f.UDP, comesAlong(r.Image, f))
		return flagged(f, fd, err)
	},
}

// devicesOf are the network devices that a socket names.
func devicesOf(d inet.Devices, memberships []inet.Membership) []string {
	var all []string
	for _, name := range []string{d.Any, d.Groups} {
		if name != "" {
			all = append(all, name)
		}
	}
	for _, m := range memberships {
		all = append(all, m.Device)
	}
	return all
}

// mustHaveDevices reports those that the host does not have.
func (c *Check) mustHaveDevices(what string, names []string) {
	for _, name := range names {
		if _, err := net.InterfaceByName(name); err != nil {
			c.Block(migrate.CodeDescriptor, "choose a host that has it", "%s uses the network device %s, which the host does not have", what, name)
		}
	}
}

// dumpUDP reads one, by fd, a descriptor of ours, but for its queue.
func dumpUDP(d *ProcessDump, f *image.File, fd int, refuse func(what, hint string)) error {
	if elsewhere, err := d.isElsewhere(fd, "a UDP socket", refuse); elsewhere || err != nil {
		return err
	}
	s, err := udp.Look(fd)
	switch {
	case errors.Is(err, udp.ErrUnsupported):
		refuse(err.Error(), "close it before the move")
		return nil
	case err != nil:
		return fmt.Errorf("reading a UDP socket: %w", err)
	case s.Local.IsValid() && d.isAlong(s.Local.Addr()) && boundToDevice(fd):
		refuse(fmt.Sprintf("a UDP socket at %v that is bound to a device", s.Local), "close it before the move")
		return nil
	}
	f.Kind, f.UDP = image.FileUDP, s
	if d.Inspect {
		return nil
	}
	return sent(fd, fmt.Sprintf("a UDP socket at %v", s.Local))
}

// sent makes sure that all of what a socket has sent is on its way.
func sent(fd int, what string) error {
	const tries = 10
	for range tries {
		n, err := inet.Unsent(fd)
		if err != nil || n == 0 {
			return err
		}
		<-time.After(500 * time.Microsecond) // the network takes what was sent
	}
	return fmt.Errorf("%w: %s has sent what is not on its way: the process holds it back (UDP_CORK, MSG_MORE), or a device or a neighbour does not take it", ErrTryAgain, what)
}
