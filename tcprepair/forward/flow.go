package forward

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"

	"github.com/pagurus-project/pagurus/tcprepair/hold"
)

// A Flow is one connection. Local is the end that moves: the address and port that its
// peer, Remote, sends to.
type Flow = hold.Flow

// ErrInvalid says that what was asked for makes no sense.
var ErrInvalid = errors.New("invalid forwarding")

// What is listed is told apart by name.
var namePattern = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

func validate(name string, flows []Flow) error {
	if !namePattern.MatchString(name) {
		return fmt.Errorf("%w: its name is %q", ErrInvalid, name)
	}
	for _, f := range flows {
		local, remote := f.Local.Addr().Unmap(), f.Remote.Addr().Unmap()
		if !local.IsValid() || f.Local.Port() == 0 || f.Remote.Port() == 0 || local.BitLen() != remote.BitLen() {
			return fmt.Errorf("%w: from %v to %v", ErrInvalid, f.Remote, f.Local)
		}
	}
	return nil
}

// Plain is a flow as it is in packets: without the notation of IPv6 for IPv4 addresses, and without zones.
func Plain(f Flow) Flow {
	bare := func(a netip.AddrPort) netip.AddrPort {
		return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
	}
	return Flow{Local: bare(f.Local), Remote: bare(f.Remote)}
}

// keys are the flows of a family as the sets have them: source and destination of what
// the peer sends, once each.
func (f *family) keys(flows []Flow) [][]byte {
	var keys [][]byte
	seen := make(map[Flow]bool)
	for _, flow := range flows {
		flow = Plain(flow)
		if f.has(flow.Local.Addr()) && !seen[flow] {
			seen[flow] = true
			keys = append(keys, append(field(flow.Remote), field(flow.Local)...))
		}
	}
	return keys
}

// field is an address and a port, each filling registers of four bytes.
func field(a netip.AddrPort) []byte {
	b := binary.BigEndian.AppendUint16(a.Addr().AsSlice(), a.Port())
	return append(b, 0, 0)
}

// flow is what a key is of.
func (f *family) flow(key []byte) (Flow, bool) {
	n := int(f.addressBytes)
	if len(key) != 2*(n+4) {
		return Flow{}, false
	}
	end := func(b []byte) netip.AddrPort {
		a, _ := netip.AddrFromSlice(b[:n])
		return netip.AddrPortFrom(a, binary.BigEndian.Uint16(b[n:]))
	}
	return Flow{Local: end(key[n+4:]), Remote: end(key)}, true
}

// without is what is left of flows.
func without(flows, gone []Flow) []Flow {
	drop := make(map[Flow]bool)
	for _, f := range gone {
		drop[Plain(f)] = true
	}
	return slices.DeleteFunc(slices.Clone(flows), func(f Flow) bool { return drop[Plain(f)] })
}
