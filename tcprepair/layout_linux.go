package tcprepair

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/tcprepair/inet"
	"github.com/pagurus-project/pagurus/tcprepair/kernel"
)

// A Layout is how the sockets of TCP lie in the memory of this kernel (struct tcp6_sock,
// include/linux/ipv6.h, of which those of AF_INET have the beginning). It makes it possible to
// know a connection by a copy of that, without the sixty system calls that ask for its
// parts. What the values of options are in memory is nobody's promise, but getsockopt(2) is a
// function of them: so Settings.Complete looks values up in what was read, by system calls, of a socket
// whose memory says the same.
type Layout struct {
	Bytes int // of a socket of AF_INET6

	family, typ, protocol, state          kernel.Field
	remote4, local4, remotePort, portHere kernel.Field
	remote6, local6                       kernel.Field
	sendBuffer, receiveBuffer, locks      kernel.Field
	clamp, cpu, hops                      kernel.Field
	plain                                 []kernel.Field // zero, in sockets that are nothing special
	settings4, settings6                  []kernel.Field // what options depend on
}

// NewLayout reads it from the kernel's BTF (/sys/kernel/btf). The error says what of it is not
// as it has to be; sockets can be read by system calls then.
func NewLayout() (*Layout, error) {
	types, err := btf.LoadKernelSpec()
	if err != nil {
		return nil, err
	}
	r := layoutReader{types: types}
	l := &Layout{
		Bytes:  int(r.structure("tcp6_sock").Size),
		family: r.field("sock_common", "skc_family"), typ: r.field("sock", "sk_type"), protocol: r.field("sock", "sk_protocol"),
		state:   r.field("sock_common", "skc_state"),
		remote4: r.field("sock_common", "skc_daddr"), local4: r.field("sock_common", "skc_rcv_saddr"),
		remotePort: r.field("sock_common", "skc_dport"), portHere: r.field("sock_common", "skc_num"),
		remote6: r.field("sock_common", "skc_v6_daddr"), local6: r.field("sock_common", "skc_v6_rcv_saddr"),
		sendBuffer: r.field("sock", "sk_sndbuf"), receiveBuffer: r.field("sock", "sk_rcvbuf"), locks: r.field("sock", "sk_userlocks"),
		clamp: r.field("tcp_sock", "window_clamp"), cpu: r.field("sock_common", "skc_incoming_cpu"),
		plain: r.fields(special),
	}
	l.settings4 = append(r.fields(settings), kernel.Rest(r.structure("inet_sock"), settingsOfInet)...)
	if kernelHas(unix.SOL_TCP, inet.TCPRTOMaxMS) {
		l.settings4 = append(l.settings4, r.field("inet_connection_sock", "icsk_rto_max"))
	}
	l.settings6 = append(l.settings6, l.settings4...)
	l.hops = r.field("tcp6_sock", "inet6.hop_limit")
	at := r.field("tcp6_sock", "inet6").Offset()
	for _, f := range kernel.Rest(r.structure("ipv6_pinfo"), settingsOfIPv6) {
		l.settings6 = append(l.settings6, f.Within(at))
	}
	if r.err != nil {
		return nil, fmt.Errorf("looking at how sockets lie in memory: %w", r.err)
	}
	return l, nil
}

// kernelHas reports an option of TCP that this kernel knows.
func kernelHas(level, name int) bool {
	fd, err := (&Socket{}).socket()
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	_, err = unix.GetsockoptInt(fd, level, name)
	return err == nil
}

// special are fields that are zero unless a connection has something that a copy does not
// tell enough of.
var special = map[string][]string{
	"sock_common":          {"skc_bound_dev_if"},
	"sock":                 {"sk_filter", "sk_reuseport_cb"},
	"inet_sock":            {"inet_opt"},
	"inet_connection_sock": {"icsk_ulp_ops"},
}

// settings are fields that options depend on, of those structs of which the most belongs to
// the connection.
var settings = map[string][]string{
	"sock_common": {"skc_reuse", "skc_reuseport", "skc_ipv6only", "skc_flags"},
	"sock": {
		"sk_ll_usec", "sk_prefer_busy_poll", "sk_rcvtimeo", "sk_sndtimeo", "sk_rcvlowat", "sk_reserved_mem", "sk_tsflags", "sk_bind_phc",
		"sk_max_pacing_rate", "sk_priority", "sk_mark", "sk_no_check_tx", "sk_no_check_rx", "sk_lingertime", "sk_txrehash", "sk_peek_off",
	},
	"inet_connection_sock": {"icsk_accept_queue", "icsk_rto_min", "icsk_delack_max", "icsk_ca_ops", "icsk_syn_retries", "icsk_user_timeout"},
	"tcp_sock": {
		"notsent_lowat", "recvmsg_inq", "nonagle", "thin_lto", "fastopen_connect", "fastopen_no_cookie", "save_syn",
		"keepalive_probes", "keepalive_time", "keepalive_intvl", "linger2", "tcp_tx_delay",
	},
}

// settingsOfInet and settingsOfIPv6 are what does not belong to the options in structs of which
// the most does, so that nothing that a kernel adds is overlooked.
var (
	settingsOfInet = []string{"sk", "pinet6", "ipv6_fl_list", "inet_saddr", "inet_sport", "inet_opt", "inet_id", "mc_list", "cork"}
	settingsOfIPv6 = []string{
		"saddr", "saddr_cache", "daddr_cache", "dst_cookie", "rcv_flowinfo", "sticky_pktinfo",
		"pktoptions", "rxpmtu", "cork", "hop_limit", "ipv6_mc_list", "ipv6_ac_list", "ipv6_fl_list",
	}
)

// layoutReader keeps the first error.
type layoutReader struct {
	types *btf.Spec
	err   error
}

func (r *layoutReader) structure(name string) *btf.Struct {
	var s *btf.Struct
	if err := r.types.TypeByName(name, &s); err != nil {
		r.err = errors.Join(r.err, err)
		return &btf.Struct{}
	}
	return s
}

func (r *layoutReader) fields(wanted map[string][]string) []kernel.Field {
	var all []kernel.Field
	for name, members := range wanted {
		for _, m := range members {
			all = append(all, r.field(name, m))
		}
	}
	return all
}

func (r *layoutReader) field(structure, name string) kernel.Field {
	f, ok := kernel.Find(r.structure(structure), name)
	if !ok && r.err == nil {
		r.err = fmt.Errorf("struct %s has no %s", structure, name)
	}
	return f
}

// A Glance is what can be seen at once of a socket whose process stands still.
type Glance struct {
	Socket   *Socket // without options
	settings string  // what its options depend on; of IPv6 that is more
}

// Glance looks at a copy of a socket, of at least Bytes. It is nil if the socket is no
// connection, or has something special: then Look tells more.
func (l *Layout) Glance(sock []byte, uid, gid uint32) *Glance {
	if len(sock) < l.Bytes {
		return nil
	}
	family, state := uint32(l.family.Number(sock)), State(l.state.Number(sock))
	if _, ok := stateNames[state]; !ok || !state.Connected() || family != unix.AF_INET && family != unix.AF_INET6 ||
		uint32(l.typ.Number(sock)) != unix.SOCK_STREAM || uint32(l.protocol.Number(sock)) != unix.IPPROTO_TCP {
		return nil
	}
	for _, f := range l.plain {
		if f.Number(sock) != 0 {
			return nil
		}
	}
	local, remote, parts := l.local4, l.remote4, l.settings4
	ipv6 := family == unix.AF_INET6
	if ipv6 {
		local, remote, parts = l.local6, l.remote6, l.settings6
	}
	here, okHere := netip.AddrFromSlice(local.Bytes(sock))
	there, okThere := netip.AddrFromSlice(remote.Bytes(sock))
	if !okHere || !okThere || here.IsUnspecified() || here.IsLinkLocalUnicast() || there.IsLinkLocalUnicast() {
		return nil
	}
	s := &Socket{
		State: state, IPv6: ipv6, UID: uid, GID: gid,
		Local:   netip.AddrPortFrom(here, uint16(l.portHere.Number(sock))),
		Remote:  netip.AddrPortFrom(there, binary.BigEndian.Uint16(l.remotePort.Bytes(sock))),
		Buffers: inet.Buffers{Send: uint32(l.sendBuffer.Number(sock)), Receive: uint32(l.receiveBuffer.Number(sock)), Locks: uint32(l.locks.Number(sock)) & 3},
	}
	var key []byte
	for _, f := range parts {
		key = f.AppendTo(key, sock)
	}
	s.Own = []inet.Option{
		{Level: unix.SOL_TCP, Name: unix.TCP_WINDOW_CLAMP, Value: encode(uint32(l.clamp.Number(sock)))},
		{Level: unix.SOL_SOCKET, Name: unix.SO_INCOMING_CPU, Value: encode(uint32(l.cpu.Number(sock)))},
	}
	const most = 255 // beyond that it is a negative number: the route's
	if hops := uint32(l.hops.Number(sock)); ipv6 && hops <= most {
		s.Own = append(s.Own, inet.Option{Level: unix.SOL_IPV6, Name: unix.IPV6_UNICAST_HOPS, Value: encode(hops)})
	}
	return &Glance{s, string(key)}
}

// own are options that are no function of the settings.
var own = map[[2]int]bool{
	{unix.SOL_TCP, unix.TCP_WINDOW_CLAMP}: true, {unix.SOL_SOCKET, unix.SO_INCOMING_CPU}: true, {unix.SOL_IPV6, unix.IPV6_UNICAST_HOPS}: true,
}

// Settings are options that sockets have been found to have, by what they depend on: of one
// network namespace, for a moment, as some are as sysctl(8) has them.
type Settings map[string][]inet.Option

// Complete gives a glance's socket its options, as Look would. fd may be any descriptor of the
// socket, and is asked for only if it has options that none had before.
func (all Settings) Complete(g *Glance, fd func() (int, error)) error {
	known, ok := all[g.settings]
	if !ok {
		opened, err := fd()
		if err != nil {
			return err
		}
		defer unix.Close(opened)
		read, err := inet.TCP.Read(opened, g.Socket.IPv6)
		if err != nil {
			return err
		}
		for _, o := range read {
			if !own[[2]int{o.Level, o.Name}] {
				known = append(known, o)
			}
		}
		all[g.settings] = known
	}
	g.Socket.Options = known
	return nil
}
