package hold

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Names of the pair of devices.
const (
	nearDevice = "pgh0-"
	farDevice  = "pgh1-"
)

// mostBytes bounds what is held. What comes beyond it is lost, as it would be
// in a full queue of a network.
const mostBytes = 256 << 20

// A Hold keeps packets back from Begin until Deliver, Forward or Close. One goroutine at
// a time uses it, but for LetOut.
type Hold struct {
	config  Config
	device  int // the near end
	capture *os.File
	reading sync.WaitGroup

	mu      sync.Mutex
	packets []packet
	bytes   int
	lost    int
	seen    int           // in all, as they were captured
	more    chan struct{} // closed with the next one
}

// Prepare makes a place to hold packets, which takes much longer than Begin.
func Prepare(c Config) (*Hold, error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	if len(c.Devices) == 0 {
		return nil, fmt.Errorf("%w: no devices", ErrInvalid)
	}
	h := &Hold{config: c, more: make(chan struct{})}
	var err error
	if h.device, err = h.pair(); err != nil {
		return nil, errors.Join(fmt.Errorf("making a place to hold packets: %w", err), h.Close())
	}
	h.reading.Go(h.read)
	if err := install(&h.config, h.device); err != nil {
		return nil, errors.Join(err, h.Close())
	}
	return h, nil
}

// BeginHandshakes holds what begins a connection from now on, so that those that
// have begun come to an end. After an error Close is to be called.
func (h *Hold) BeginHandshakes() error { return begin(&h.config, handshakes) }

// Begin holds all packets from now on: one that has not been delivered when it
// returns will not be. After an error Close is to be called.
func (h *Hold) Begin() error {
	if err := begin(&h.config, everything); err != nil {
		return err
	}
	settle()
	return nil
}

// BeginFlows holds the packets of these flows, which have peers, as Begin does. It is for a hold
// that was prepared for them (Config.Peers), and that holds nothing else.
func (h *Hold) BeginFlows(flows []Flow) error {
	c := h.config
	c.Flows = flows
	if err := c.validate(); err != nil {
		return err
	}
	if !c.Peers || slices.ContainsFunc(flows, func(f Flow) bool { return f.width() != withPeers }) {
		return fmt.Errorf("%w: not flows with peers alone, or it was not prepared for them", ErrInvalid)
	}
	h.config.Flows = flows
	return h.Begin()
}

// pair makes the devices, the far one in a namespace that lives as long as the
// socket that captures there, and returns the near one's index.
func (h *Hold) pair() (int, error) {
	near, far := nearDevice+h.config.Name, farDevice+h.config.Name
	type result struct {
		namespace int
		err       error
	}
	made, named := make(chan result), make(chan error)
	captured := make(chan error)
	go func() { // on a thread that ends with it
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_NEWNET)
		fd := -1
		if err == nil {
			fd, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		}
		made <- result{fd, err}
		if <-named == nil {
			captured <- h.open(far)
		}
	}()
	r := <-made
	if r.err != nil {
		named <- r.err
		return 0, r.err
	}
	defer unix.Close(r.namespace)
	link := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: near, MTU: mtu}, PeerName: far, PeerNamespace: netlink.NsFd(r.namespace), PeerMTU: mtu,
	}
	err := netlink.LinkAdd(link)
	if err == nil {
		// No word of its own: it has no address of IPv6 then.
		err = netlink.LinkSetIP6AddrGenMode(link, ip6AddrGenModeNone)
	}
	named <- err
	if err == nil {
		err = <-captured
	}
	if err == nil {
		// The other end is up already. If it came up later, this one would lose what
		// it is given until the kernel gets round to that (dev_activate, linkwatch).
		err = netlink.LinkSetUp(link)
	}
	return link.Attrs().Index, err
}

// mtu of both: no packet is too large.
const mtu = 65535

const ip6AddrGenModeNone = 1 // IN6_ADDR_GEN_MODE_NONE (include/uapi/linux/if_link.h)

// Held is how many packets are held, and how many were lost for want of room.
func (h *Hold) Held() (packets, lost int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.packets), h.lost
}

// take takes what is held out.
func (h *Hold) take() []packet {
	h.mu.Lock()
	defer h.mu.Unlock()
	packets := h.packets
	h.packets, h.bytes = nil, 0
	return packets
}

// Deliver gives what is held to the sockets of this host, in order, then lets
// new packets through. The sockets must be ready by now. The hold may begin again.
func (h *Hold) Deliver(ctx context.Context) error {
	sender, err := newSender()
	if err != nil {
		return errors.Join(err, letThrough(h.config.Name, outgoing), letThrough(h.config.Name, incoming))
	}
	defer sender.close()
	// The answers may go out. New packets come while old ones are delivered: they
	// are let through when there are few, and those that are on their way to us
	// come last.
	errs := []error{h.LetOut()}
	errs = append(errs, sender.deliver(h.take, time.Now().Add(deliverFor)))
	err = letThrough(h.config.Name, incoming)
	if err == nil {
		settle()
		var held int
		if held, err = counted(h.config.Name); err == nil {
			err = h.await(ctx, held)
		}
	}
	return errors.Join(append(errs, err, sender.deliver(h.take, time.Now().Add(deliverFor)), letThrough(h.config.Name, outgoing))...)
}

// deliverFor is how long it is tried to come to an end with what comes meanwhile.
const deliverFor = 100 * time.Millisecond

// LetThrough makes a hold of this name, of a process that died, hold nothing any more.
// What it has held is lost. Remove takes it away, which takes longer.
func LetThrough(name string) error {
	return errors.Join(letThrough(name, outgoing), letThrough(name, incoming))
}

// LetOut ends the dropping of what this host sends, but for resets that answer segments
// without a socket: one that was held may come when the connection has ended, as later
// ones overtake it. It may be called during Forward.
func (h *Hold) LetOut() error { return letOut(&h.config) }

// Forward gives what is held, and what still comes, to the host that has the
// addresses by now, until nothing has come for a while, or the context ends, or one of
// them is here again, or half a minute has gone by. Until LetOut this host sends nothing
// in their name. It tells the first thing that has failed.
func (h *Hold) Forward(ctx context.Context, quiet time.Duration) (failed error) {
	sender, err := newSender()
	if err != nil {
		return err
	}
	defer sender.close()
	ctx, cancel := context.WithTimeout(ctx, forwardAtMost)
	defer cancel()
	note := func(err error) {
		if failed == nil {
			failed = err
		}
	}
	timer := time.NewTimer(quiet)
	defer timer.Stop()
	for waiting := true; waiting; {
		more := h.awaited()
		if packets, _ := h.Held(); packets > 0 {
			note(sender.deliver(h.take, time.Now().Add(deliverFor))) // may be local ones, too
			timer.Reset(quiet)
		}
		if here, err := h.IsHere(); err == nil && here {
			note(h.Deliver(ctx))
			break
		}
		select {
		case <-more:
		case <-timer.C:
			waiting = false
		case <-ctx.Done():
			waiting = false
		}
	}
	return failed
}

// forwardAtMost bounds that: somebody may never learn who has the address.
const forwardAtMost = 30 * time.Second

// IsHere reports that one of the addresses is this host's.
func (h *Hold) IsHere() (bool, error) {
	for _, f := range h.config.Flows {
		routes, err := netlink.RouteGet(f.Local.Addr().Unmap().AsSlice())
		switch {
		case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH): // it is nowhere
		case err != nil:
			return false, fmt.Errorf("looking for %v: %w", f.Local.Addr(), err)
		case len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL:
			return true, nil
		}
	}
	return false, nil
}

// awaited is closed with the next packet that comes.
func (h *Hold) awaited() <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.more
}

// awaitTimeout bounds how long packets are waited for that the kernel has on
// their way to us.
const awaitTimeout = time.Second

// await waits until all packets that were held are here.
func (h *Hold) await(ctx context.Context, held int) error {
	ctx, cancel := context.WithTimeout(ctx, awaitTimeout)
	defer cancel()
	for {
		h.mu.Lock()
		seen, more := h.seen, h.more
		h.mu.Unlock()
		if seen >= held {
			return nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return fmt.Errorf("%d of %d held packets were lost: %w", held-seen, held, ctx.Err())
		}
	}
}

// DropStrays keeps this host from answering segments without a socket at these addresses,
// until Remove with the name. It is for the host that has the addresses when another one
// has held their packets: those may come when the connections have ended, as later ones
// overtake them. It drops segments from there with the priority tcprepair.Mute, too. It outlives the process.
func DropStrays(name string, addresses []netip.Addr) error {
	c := Config{Name: name}
	for _, a := range addresses {
		c.Flows = append(c.Flows, Flow{Local: netip.AddrPortFrom(a, 0)})
	}
	if err := c.validate(); err != nil {
		return err
	}
	if err := install(&c, 0); err != nil {
		return err
	}
	if err := letOut(&c); err != nil {
		return errors.Join(err, Remove(name))
	}
	return nil
}

// Close lets new packets through and forgets what is held. It takes about a tenth of a
// second, most of which the kernel takes for the rules (synchronize_rcu).
func (h *Hold) Close() error {
	err := Remove(h.config.Name)
	if h.capture != nil {
		_ = h.capture.Close() // may be closed already
		h.reading.Wait()
		h.capture = nil
	}
	return err
}

// IsOwn reports a device that is part of a hold.
func IsOwn(device string) bool {
	return strings.HasPrefix(device, nearDevice) || strings.HasPrefix(device, farDevice)
}

// Names lists the holds that there are on the host.
func Names() ([]string, error) {
	names, err := installed()
	if err != nil {
		return nil, err
	}
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("listing devices: %w", err)
	}
	for _, l := range links {
		if name, ok := strings.CutPrefix(l.Attrs().Name, nearDevice); ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// Remove takes away what a hold of this name has left on the host.
func Remove(name string) error {
	err := errors.Join(uninstall(name, incoming), uninstall(name, outgoing))
	link, linkErr := netlink.LinkByName(nearDevice + name)
	if errors.As(linkErr, &netlink.LinkNotFoundError{}) {
		return err
	}
	if linkErr == nil {
		linkErr = netlink.LinkDel(link)
	}
	if errors.Is(linkErr, unix.ENODEV) { // it goes with the namespace of the other end, at some time
		linkErr = nil
	}
	return errors.Join(err, linkErr)
}
