package packet

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/tcprepair/inet"
)

// A Socket is a packet socket without a host. It is plain data.
type Socket struct {
	Type     int    // unix.SOCK_RAW or SOCK_DGRAM
	Protocol uint16 // of Ethernet, unix.ETH_P_ALL, ...; 0: it takes nothing
	Device   string `json:",omitzero"` // that it is bound to; empty: all of them

	UID, GID uint32 `json:",omitzero"`

	Buffers       inet.Buffers  `json:",omitzero"`
	Options       []inet.Option `json:",omitzero"`
	CopyThreshold uint32        `json:",omitzero"` // PACKET_COPY_THRESH, bytes
	Filter        inet.Filter   `json:",omitzero"`
	Memberships   []Membership  `json:",omitzero"`
}

// A Membership has a device take more than what is for the host (PACKET_ADD_MEMBERSHIP).
type Membership struct {
	Device  string
	Type    uint16 // unix.PACKET_MR_PROMISC, ...
	Address []byte `json:",omitzero"` // of the link layer
	Count   uint32 // how often the program has asked for it
}

// ErrInvalid says that a Socket cannot have come from Look.
var ErrInvalid = errors.New("not a socket's state")

// maxCount is more often than programs ask for one membership.
const maxCount = 1 << 16

// Validate checks a Socket from elsewhere before anything is made of it.
func (s *Socket) Validate() error {
	if s.Type != unix.SOCK_RAW && s.Type != unix.SOCK_DGRAM {
		return fmt.Errorf("%w: type %d", ErrInvalid, s.Type)
	}
	for i := range s.Options {
		if err := inet.Packet.Validate(&s.Options[i]); err != nil {
			return fmt.Errorf("%w: %w", ErrInvalid, err)
		}
	}
	if len(s.Filter) > unix.BPF_MAXINSNS {
		return fmt.Errorf("%w: a filter of %d instructions", ErrInvalid, len(s.Filter))
	}
	for _, m := range s.Memberships {
		if m.Type > unix.PACKET_MR_UNICAST || len(m.Address) > addressBytes || m.Device == "" || m.Count == 0 || m.Count > maxCount {
			return fmt.Errorf("%w: membership %d of %q, %d times, with an address of %d bytes", ErrInvalid, m.Type, m.Device, m.Count, len(m.Address))
		}
	}
	return nil
}

// Devices are all that it names.
func (s *Socket) Devices() []string {
	var all []string
	if s.Device != "" {
		all = append(all, s.Device)
	}
	for _, m := range s.Memberships {
		all = append(all, m.Device)
	}
	return all
}
