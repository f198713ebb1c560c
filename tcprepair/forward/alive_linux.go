package forward

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Alive tells which of these connections have a socket on this host. One in TIME-WAIT is
// alive: should the answer to the peer's last segment be lost, it is given again.
func Alive(flows []Flow) ([]Flow, error) {
	found := make(map[Flow]bool)
	for i := range families {
		sockets, err := netlink.SocketDiagTCP(families[i].domain)
		if err != nil {
			return nil, fmt.Errorf("listing sockets: %w", err)
		}
		for _, s := range sockets {
			local, ok1 := netip.AddrFromSlice(s.ID.Source)
			remote, ok2 := netip.AddrFromSlice(s.ID.Destination)
			if ok1 && ok2 && s.State != unix.BPF_TCP_LISTEN {
				found[Plain(Flow{
					Local:  netip.AddrPortFrom(local, s.ID.SourcePort),
					Remote: netip.AddrPortFrom(remote, s.ID.DestinationPort),
				})] = true
			}
		}
	}
	var alive []Flow
	for _, f := range flows {
		if found[Plain(f)] {
			alive = append(alive, f)
		}
	}
	return alive, nil
}
