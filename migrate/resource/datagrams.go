package resource

import (
	"errors"
	"fmt"
	"runtime"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/tcprepair/inet"
	"github.com/pagurus-project/pagurus/tcprepair/udp"
)

// DumpDatagrams reads what has come for the UDP sockets of an image and was not read yet.
// Their processes do not run any more. It stays there.
func DumpDatagrams(m *image.Image) error {
	group := errgroup.Group{}
	group.SetLimit(runtime.GOMAXPROCS(0))
	eachFile(m, func(pid, fd int, f *image.File) {
		if f.UDP == nil {
			return
		}
		group.Go(func() error {
			own, err := borrow(pid, fd)
			if err != nil {
				return err
			}
			defer unix.Close(own)
			if f.UDP.Queue, err = udp.Queue(own); err != nil {
				return fmt.Errorf("reading the queue of the UDP socket at %v: %w", f.UDP.Local, err)
			}
			return nil
		})
	})
	return group.Wait()
}

// datagrams lists those of an image, and how many cannot be delivered: to a socket that is
// bound to a group or a device.
func datagrams(m *image.Image) (all []udp.Datagram, lost int) {
	for i := range m.Files {
		s := m.Files[i].UDP
		switch {
		case s == nil:
		case s.Local.Addr().IsMulticast() || slices.ContainsFunc(s.Options, bindsToDevice):
			lost += len(s.Queue)
		default:
			all = append(all, s.Queue...)
		}
	}
	return all, lost
}

func bindsToDevice(o inet.Option) bool {
	return o.Level == unix.SOL_SOCKET && o.Name == unix.SO_BINDTODEVICE && len(o.Value) > 0
}

// deliverDatagrams gives them to the sockets of this host. Those that were sent to an address
// of the source alone, or to a group, go to the address by which this host would answer.
func deliverDatagrams(all []udp.Datagram) error {
	var errs []error
	for _, d := range all {
		err := toThisHost(&d)
		if err == nil {
			err = udp.Deliver([]udp.Datagram{d})
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func toThisHost(d *udp.Datagram) error {
	routes, err := netlink.RouteGet(d.To.Addr().AsSlice())
	if err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL {
		return nil
	}
	if routes, err = netlink.RouteGet(d.From.Addr().AsSlice()); err != nil || len(routes) == 0 {
		return fmt.Errorf("looking for the way to %v: %w", d.From, err)
	}
	d.To = endpointOf(routes[0].Src, d.To.Port())
	return nil
}
