package timewait

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"github.com/pagurus-project/pagurus/tcprepair/kernel"
)

// A layout is where what lies in struct tcp_timewait_sock.
type layout struct {
	bytes uint32

	family, state, reuse, device  kernel.Field
	daddr, saddr, daddr6, saddr6  kernel.Field
	dport, port                   kernel.Field
	sendNext, receiveNext         kernel.Field
	mark, substate, scale         kernel.Field
	micro, tos, priority          kernel.Field
	expires                       kernel.Field
	window, offset, recent, stamp kernel.Field
	md5                           kernel.Field // a pointer; so is
	ao                            kernel.Field
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
	for path, to := range map[string]*kernel.Field{
		common + "skc_family": &l.family, common + "skc_state": &l.state, common + "skc_reuse": &l.reuse,
		common + "skc_bound_dev_if": &l.device, common + "skc_daddr": &l.daddr, common + "skc_rcv_saddr": &l.saddr,
		common + "skc_dport": &l.dport, common + "skc_num": &l.port,
		common + "skc_tw_snd_nxt": &l.sendNext, common + "skc_tw_rcv_nxt": &l.receiveNext,
		tw + "tw_mark": &l.mark, tw + "tw_substate": &l.substate, tw + "tw_rcv_wscale": &l.scale,
		tw + "tw_tos": &l.tos, tw + "tw_timer.expires": &l.expires,
		"tw_rcv_wnd": &l.window, "tw_ts_offset": &l.offset, "tw_ts_recent": &l.recent, "tw_ts_recent_stamp": &l.stamp,
	} {
		var ok bool
		if *to, ok = kernel.Find(s, path); !ok {
			return nil, fmt.Errorf("struct tcp_timewait_sock has no %s: %w", path, errors.ErrUnsupported)
		}
	}
	// What kernels of some configuration or age do not have.
	l.daddr6, _ = kernel.Find(s, common+"skc_v6_daddr")
	l.saddr6, _ = kernel.Find(s, common+"skc_v6_rcv_saddr")
	l.micro, _ = kernel.Find(s, tw+"tw_usec_ts")
	l.priority, _ = kernel.Find(s, tw+"tw_priority")
	l.md5, _ = kernel.Find(s, "tw_md5_key")
	l.ao, _ = kernel.Find(s, "ao_info")
	return l, nil
}
