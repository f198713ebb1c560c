package acceptqueue

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/mdlayher/netlink"
	routes "github.com/vishvananda/netlink"
)

// A Filler puts connections into accept queues. It has a program at the ingress of the
// loopback device, which goes with it, even if this process dies. One goroutine at a time
// uses it, in the network namespace in which it was made: locked to its thread, if that is
// not the process's own.
type Filler struct {
	orders, listeners *ebpf.Map
	program           *ebpf.Program
	link              link.Link
	diag              *netlink.Conn
	mtu               int          // of the loopback device
	forbid            func() error // makes the setting about SYN cookies what it was
}

// NewFiller loads the program, which takes tens of milliseconds, as the kernel's types are
// read, and attaches it. The caller needs CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN and CAP_NET_RAW.
//
// The kernel makes connections of acknowledgements only while SYN cookies are allowed
// (net.ipv4.tcp_syncookies): where they are not, they are from now on until Close.
func NewFiller() (*Filler, error) {
	f := &Filler{}
	if err := f.open(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (f *Filler) open() error {
	k, err := lookUpKernel()
	if err != nil {
		return err
	}
	f.orders, err = ebpf.NewMap(&ebpf.MapSpec{Name: "pagurus_orders", Type: ebpf.Hash, KeySize: tupleBytes, ValueSize: orderBytes, MaxEntries: mostOrders})
	if err != nil {
		return fmt.Errorf("making a map: %w", err)
	}
	f.listeners, err = ebpf.NewMap(&ebpf.MapSpec{Name: "pagurus_listen", Type: ebpf.SockMap, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		return fmt.Errorf("making a map: %w", err)
	}
	if f.program, err = ebpf.NewProgram(program(k, f.orders, f.listeners)); err != nil {
		return fmt.Errorf("loading the program: %w", err)
	}
	lo, err := routes.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("looking for the loopback device: %w", err)
	}
	f.mtu = lo.Attrs().MTU
	f.link, err = link.AttachTCX(link.TCXOptions{
		Interface: lo.Attrs().Index, Program: f.program, Attach: ebpf.AttachTCXIngress, Anchor: link.Head(),
	})
	if err != nil {
		return fmt.Errorf("attaching the program to the loopback device: %w", err)
	}
	if f.diag, err = dialDiag(); err != nil {
		return err
	}
	f.forbid, err = allow(cookiesSetting)
	return err
}

// mostOrders there can be: the present one, and those whose packets have not come, which is rare.
const mostOrders = 64

// Close takes the program away.
func (f *Filler) Close() error {
	var errs []error
	if f.forbid != nil {
		errs = append(errs, f.forbid())
	}
	if f.link != nil {
		errs = append(errs, f.link.Close())
	}
	if f.program != nil {
		errs = append(errs, f.program.Close())
	}
	if f.diag != nil {
		errs = append(errs, f.diag.Close())
	}
	for _, m := range []*ebpf.Map{f.orders, f.listeners} {
		if m != nil {
			errs = append(errs, m.Close())
		}
	}
	return errors.Join(errs...)
}
