package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	bridgeName = "lan"
	nicName    = "eth0" // in every host
	mtu        = 1500
)

// inNetwork runs fn on a thread that stands in the network namespace of pid.
func inNetwork(pid int, fn func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
		if err != nil {
			result <- err
			return
		}
		defer ns.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			result <- fmt.Errorf("entering the network of process %d: %w", pid, err)
			return
		}
		result <- fn()
	}()
	return <-result
}

// makeSwitch makes the bridge, in the namespace that the thread stands in.
func makeSwitch() error {
	// Without snooping neighbour solicitations reach everybody at once, and a
	// bridge that speaks no spanning tree forwards from the first packet on.
	snooping := false
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridgeName, MTU: mtu}, MulticastSnooping: &snooping}
	if err := netlink.LinkAdd(bridge); err != nil {
		return fmt.Errorf("making a bridge: %w", explainLink(err, "bridge", "CONFIG_BRIDGE"))
	}
	return netlink.LinkSetUp(bridge)
}

// plugIn lays a cable from the switch, where the thread stands, to the host
// whose first process is pid. The switch's end has the host's name.
func plugIn(h hostPlan, pid int) error {
	bridge, err := netlink.LinkByName(bridgeName)
	if err != nil {
		return fmt.Errorf("looking for the bridge: %w", err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.MasterIndex = h.Name, mtu, bridge.Attrs().Index
	cable := &netlink.Veth{
		LinkAttrs: attrs, PeerName: nicName, PeerMTU: mtu,
		PeerHardwareAddr: hardwareAddr(h.Address.Addr()), PeerNamespace: netlink.NsPid(pid),
	}
	if err := netlink.LinkAdd(cable); err != nil {
		return fmt.Errorf("laying a cable to %s: %w", h.Name, explainLink(err, "veth", "CONFIG_VETH"))
	}
	return netlink.LinkSetUp(cable)
}

// hardwareAddr makes captures readable: the last bytes are the IPv4 address.
func hardwareAddr(a netip.Addr) net.HardwareAddr {
	ip := a.As4()
	return net.HardwareAddr{0x02, 0x77, ip[0], ip[1], ip[2], ip[3]} // locally administered
}

// setUpNetwork gives the host, where the thread stands, its addresses.
func setUpNetwork(h hostPlan) error {
	// An address is to be usable at once, the link-local one of the card too
	// (ip-sysctl.rst, accept_dad); there are no routers to ask for.
	for _, setting := range []string{"accept_dad", "accept_ra", "router_solicitations"} {
		path := "/proc/sys/net/ipv6/conf/" + nicName + "/" + setting
		if err := os.WriteFile(path, []byte("0"), 0); err != nil {
			return fmt.Errorf("turning off %s: %w", setting, err)
		}
	}
	for _, name := range []string{"lo", nicName} {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return fmt.Errorf("looking for %s: %w", name, err)
		}
		if name == nicName {
			for _, p := range []netip.Prefix{h.Address, h.Address6} {
				if err := addAddress(link, p); err != nil {
					return err
				}
			}
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return fmt.Errorf("setting %s up: %w", name, err)
		}
	}
	return nil
}

func addAddress(link netlink.Link, p netip.Prefix) error {
	address, err := netlink.ParseAddr(p.String())
	if err != nil {
		return err
	}
	if p.Addr().Is6() {
		address.Flags = unix.IFA_F_NODAD
	}
	if err := netlink.AddrAdd(link, address); err != nil {
		return fmt.Errorf("adding address %s: %w", p, err)
	}
	return nil
}

func explainLink(err error, module, option string) error {
	if errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("%w: this kernel has no %s devices: try modprobe %s, or a kernel built with %s", err, module, module, option)
	}
	return err
}

// setLink plugs the cable to a host in or out, at the switch, where the thread
// stands: the host keeps its addresses and routes and loses its carrier.
func setLink(host string, up bool) error {
	port, err := netlink.LinkByName(host)
	if err != nil {
		return fmt.Errorf("looking for the cable to %s: %w", host, err)
	}
	if up {
		return netlink.LinkSetUp(port)
	}
	return netlink.LinkSetDown(port)
}

// limitLink makes what leaves through a card no faster than that many bytes
// a second (tc-tbf(8)), or as fast as it can for 0.
func limitLink(name string, bytesPerSecond uint64) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("looking for %s: %w", name, err)
	}
	attrs := netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT}
	if bytesPerSecond == 0 {
		return removeLimit(link)
	}
	// A bucket of 10 ms, and no less than the largest packet a card is handed;
	// a queue of 100 ms, as a small switch has.
	bucket := uint32(max(bytesPerSecond/100, 64<<10))
	return netlink.QdiscReplace(&netlink.Tbf{
		QdiscAttrs: attrs,
		Rate:       bytesPerSecond,
		Buffer:     netlink.Xmittime(bytesPerSecond, bucket),
		Limit:      bucket + uint32(bytesPerSecond/10),
	})
}

func removeLimit(link netlink.Link) error {
	all, err := netlink.QdiscList(link)
	if err != nil {
		return fmt.Errorf("looking for limits of %s: %w", link.Attrs().Name, err)
	}
	for _, q := range all {
		if q.Type() == "tbf" {
			return netlink.QdiscDel(q)
		}
	}
	return nil
}
