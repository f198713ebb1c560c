package member

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"

	"github.com/hashicorp/memberlist"

	"github.com/pagurus-project/pagurus/trust"
)

// A Member is one daemon of the cluster.
type Member struct {
	Name    string // of its host
	Role    trust.Role
	Status  Status
	Address netip.AddrPort // of its gossip
	Meta    Meta
}

// Status is what gossip says of a member.
type Status string

// The statuses. A suspect still counts as alive: it has not been given up yet.
const (
	Alive Status = "alive"
	Dead  Status = "dead" // does not answer
	Left  Status = "left" // said that it goes
)

// Meta is what a member tells of itself. Addresses are host:port.
type Meta struct {
	GRPC    string
	HTTP    string // coordinators only
	Raft    string // coordinators only
	Version string
}

// wire is Meta as it travels, with short names: memberlist allows 512 bytes.
type wire struct {
	Name    string     `json:"n"`
	Role    trust.Role `json:"r"`
	GRPC    string     `json:"g,omitempty"`
	HTTP    string     `json:"h,omitempty"`
	Raft    string     `json:"f,omitempty"`
	Version string     `json:"v,omitempty"`
	Leaving bool       `json:"l,omitempty"`
}

func encode(c Config, leaving bool) ([]byte, error) {
	data, err := json.Marshal(wire{
		Name: c.Name, Role: c.Role, GRPC: c.Meta.GRPC, HTTP: c.Meta.HTTP, Raft: c.Meta.Raft,
		Version: c.Meta.Version, Leaving: leaving,
	})
	if err != nil {
		return nil, err
	}
	if len(data) > memberlist.MetaMaxSize {
		return nil, fmt.Errorf("what the member tells of itself takes %d bytes, more than %d", len(data), memberlist.MetaMaxSize)
	}
	return data, nil
}

// nodeName tells the two members of a host apart.
func nodeName(role trust.Role, name string) string { return name + "/" + string(role) }

// decode makes a member out of what gossip says.
func decode(n *memberlist.Node) (m Member, leaving bool, err error) {
	var w wire
	if err := json.Unmarshal(n.Meta, &w); err != nil {
		return m, false, fmt.Errorf("reading what %q tells of itself: %w", n.Name, err)
	}
	if err := (trust.Identity{Role: w.Role, Name: w.Name}).Validate(); err != nil {
		return m, false, fmt.Errorf("member %q: %w", n.Name, err)
	}
	if n.Name != nodeName(w.Role, w.Name) {
		return m, false, fmt.Errorf("member %q calls itself %s", n.Name, nodeName(w.Role, w.Name))
	}
	ip, ok := netip.AddrFromSlice(n.Addr)
	if !ok {
		return m, false, fmt.Errorf("member %q: address %v", n.Name, n.Addr)
	}
	return Member{
		Name: w.Name, Role: w.Role, Status: Alive,
		Address: netip.AddrPortFrom(ip.Unmap(), n.Port),
		Meta:    Meta{GRPC: w.GRPC, HTTP: w.HTTP, Raft: w.Raft, Version: w.Version},
	}, w.Leaving, nil
}

// KeyBytes is the length of the key that encrypts gossip: AES-256.
const KeyBytes = 32

var errKey = errors.New("gossip key: 32 bytes are needed")
