package source

import (
	"net/netip"

	"github.com/pagurus-project/pagurus/migrate/image"
)

// listTimeWaits lists connections at the addresses that go along that have ended: what their peers send
// again reaches the destination. All packets are held. On kernels that do not show them they stay
// behind, as nobody knows of them.
func (m *Migration) listTimeWaits() image.TimeWaits {
	if m.host.timeWaits == nil {
		return image.TimeWaits{}
	}
	local := make([]netip.Addr, len(m.config.Addresses))
	for i, p := range m.config.Addresses {
		local[i] = p.Addr()
	}
	all, others, err := m.host.timeWaits.List(local, image.MaxTimeWaits)
	if err != nil {
		return image.TimeWaits{Failed: err.Error()}
	}
	return image.TimeWaits{All: all, Others: others}
}
