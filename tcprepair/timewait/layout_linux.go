package timewait

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

// A field is a number in a struct, or some bits of one. Both end within eight bytes of where they begin.
type field struct{ bit, bits uint32 }

// in reads it from the struct's bytes. A field that the kernel does not have is 0.
func (f field) in(b []byte) uint64 {
	if f.bits == 0 {
		return 0
	}
	var word [8]byte
	copy(word[:], b[f.bit/8:])
	n := binary.NativeEndian.Uint64(word[:]) >> (f.bit % 8)
	if f.bits < 64 {
		n &= 1<<f.bits - 1
	}
	return n
}

func (f field) at(b []byte, n int) []byte { return b[f.bit/8:][:n] }

// A layout is where what lies in struct tcp_timewait_sock.
type layout struct {
	bytes uint32

	family, state, reuse, device  field
	daddr, saddr, daddr6, saddr6  field
	dport, port                   field
	sendNext, receiveNext         field
	mark, substate, scale         field
	micro, tos, priority          field
	expires                       field
	window, offset, recent, stamp field
	md5                           field // a pointer; so is
	ao                            field
}

func unsupported(err error) error {
	if errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, btf.ErrNotFound) {
		return errors.Join(errors.ErrUnsupported, err)
	}
	return err
}

// layoutOf learns it from the kernel's description.
func layoutOf(types *btf.Spec) (*layout, error) {
	var s *btf.Struct
	if err := types.TypeByName("tcp_timewait_sock", &s); err != nil {
		return nil, fmt.Errorf("looking for struct tcp_timewait_sock: %w", unsupported(err))
	}
	l := &layout{bytes: s.Size}
	const tw, common = "tw_sk.", "tw_sk.__tw_common."
	for path, to := range map[string]*field{
		common + "skc_family": &l.family, common + "skc_state": &l.state, common + "skc_reuse": &l.reuse,
		common + "skc_bound_dev_if": &l.device, common + "skc_daddr": &l.daddr, common + "skc_rcv_saddr": &l.saddr,
		common + "skc_dport": &l.dport, common + "skc_num": &l.port,
		common + "skc_tw_snd_nxt": &l.sendNext, common + "skc_tw_rcv_nxt": &l.receiveNext,
		tw + "tw_mark": &l.mark, tw + "tw_substate": &l.substate, tw + "tw_rcv_wscale": &l.scale,
		tw + "tw_tos": &l.tos, tw + "tw_timer.expires": &l.expires,
		"tw_rcv_wnd": &l.window, "tw_ts_offset": &l.offset, "tw_ts_recent": &l.recent, "tw_ts_recent_stamp": &l.stamp,
	} {
		var ok bool
		if *to, ok = fieldOf(s, path); !ok {
			return nil, fmt.Errorf("struct tcp_timewait_sock has no %s: %w", path, errors.ErrUnsupported)
		}
	}
	// What kernels of some configuration or age do not have.
	l.daddr6, _ = fieldOf(s, common+"skc_v6_daddr")
	l.saddr6, _ = fieldOf(s, common+"skc_v6_rcv_saddr")
	l.micro, _ = fieldOf(s, tw+"tw_usec_ts")
	l.priority, _ = fieldOf(s, tw+"tw_priority")
	l.md5, _ = fieldOf(s, "tw_md5_key")
	l.ao, _ = fieldOf(s, "ao_info")
	return l, nil
}

// fieldOf finds what a path of members leads to.
func fieldOf(s *btf.Struct, path string) (field, bool) {
	members, at := s.Members, btf.Bits(0)
	for {
		name, rest, more := strings.Cut(path, ".")
		m, offset, ok := member(members, name)
		if !ok {
			return field{}, false
		}
		at += offset
		if more {
			inner, ok := btf.UnderlyingType(m.Type).(*btf.Struct)
			if !ok {
				return field{}, false
			}
			members, path = inner.Members, rest
			continue
		}
		bits := uint32(m.BitfieldSize)
		if bits == 0 {
			size, err := btf.Sizeof(m.Type)
			if err != nil {
				return field{}, false
			}
			bits = uint32(size) * 8
		}
		return field{uint32(at), bits}, true
	}
}

// member finds one, in anonymous structs and unions, too.
func member(members []btf.Member, name string) (m btf.Member, at btf.Bits, ok bool) {
	for _, m := range members {
		if m.Name == name {
			return m, m.Offset, true
		}
		if m.Name != "" {
			continue
		}
		var inner []btf.Member
		switch t := btf.UnderlyingType(m.Type).(type) {
		case *btf.Struct:
			inner = t.Members
		case *btf.Union:
			inner = t.Members
		}
		if found, offset, ok := member(inner, name); ok {
			return found, m.Offset + offset, true
		}
	}
	return m, 0, false
}
