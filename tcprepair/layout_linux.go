package tcprepair

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/tcprepair/inet"
)

// A Layout is how the sockets of TCP lie in the memory of this kernel (struct tcp6_sock,
// include/linux/ipv6.h, of which those of AF_INET have the beginning). It makes it possible to
// know a connection by a copy of that, without the sixty system calls that ask for its
// parts. What the values of options are in memory is nobody's promise, but getsockopt(2) is a
// function of them: so Options looks values up in what was read, by system calls, of a socket
// whose memory says the same.
type Layout struct {
	Bytes int // of a socket of AF_INET6

	family, typ, protocol, state          field
	remote4, local4, remotePort, portHere field
	remote6, local6                       field
	sendBuffer, receiveBuffer, locks      field
	clamp, cpu, hops                      field
	plain                                 []field // zero, in sockets that are nothing special
	settings4, settings6                  []field // what options depend on
}

// A field is a part of a socket: bytes, or some of their bits.
type field struct {
	at, bytes   int
	first, bits uint32 // of a bit field
}

// NewLayout reads it from the kernel's BTF (/sys/kernel/btf). The error says what of it is not
// as it has to be; sockets can be read by system calls then.
func NewLayout() (*Layout, error) {
	kernel, err := btf.LoadKernelSpec()
	if err != nil {
		return nil, err
	}
	r := layoutReader{kernel: kernel}
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
	l.settings4 = append(r.fields(settings), r.rest("inet_sock", settingsOfInet)...)
	if kernelHas(unix.SOL_TCP, inet.TCPRTOMaxMS) {
		l.settings4 = append(l.settings4, r.field("inet_connection_sock", "icsk_rto_max"))
	}
	l.settings6 = append(l.settings6, l.settings4...)
	at := r.field("tcp6_sock", "inet6").at
	l.hops = r.field("ipv6_pinfo", "hop_limit")
	l.hops.at += at
	for _, f := range r.rest("ipv6_pinfo", settingsOfIPv6) {
		f.at += at
		l.settings6 = append(l.settings6, f)
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
	kernel *btf.Spec
	err    error
}

func (r *layoutReader) structure(name string) *btf.Struct {
	var s *btf.Struct
	if err := r.kernel.TypeByName(name, &s); err != nil {
		r.err = errors.Join(r.err, err)
		return &btf.Struct{}
	}
	return s
}

func (r *layoutReader) fields(wanted map[string][]string) []field {
	var all []field
	for name, members := range wanted {
		for _, m := range members {
			all = append(all, r.field(name, m))
		}
	}
	return all
}

func (r *layoutReader) field(structure, name string) field {
	var found field
	eachMember(r.structure(structure).Members, 0, func(m btf.Member, f field) {
		if m.Name == name && found.bytes == 0 {
			found = f
		}
	})
	if found.bytes == 0 && r.err == nil {
		r.err = fmt.Errorf("struct %s has no %s", structure, name)
	}
	return found
}

// rest are all fields of a struct but some.
func (r *layoutReader) rest(structure string, but []string) []field {
	s := r.structure(structure)
	not := make([]bool, s.Size)
	eachMember(s.Members, 0, func(m btf.Member, f field) {
		for _, name := range but {
			if m.Name == name {
				for at := f.at; at < f.at+f.bytes; at++ {
					not[at] = true
				}
			}
		}
	})
	var all []field
	for at := range not {
		switch last := len(all) - 1; {
		case not[at]:
		case last >= 0 && all[last].at+all[last].bytes == at:
			all[last].bytes++
		default:
			all = append(all, field{at: at, bytes: 1})
		}
	}
	return all
}

// eachMember calls f for each member of a struct, and of those in it that have no name.
func eachMember(members []btf.Member, base uint32, f func(btf.Member, field)) {
	for _, m := range members {
		bits := base + uint32(m.Offset)
		switch t := btf.UnderlyingType(m.Type).(type) {
		case *btf.Struct:
			if m.Name == "" {
				eachMember(t.Members, bits, f)
				continue
			}
		case *btf.Union:
			if m.Name == "" {
				eachMember(t.Members, bits, f)
				continue
			}
		}
		size, err := btf.Sizeof(m.Type)
		if err != nil {
			continue
		}
		is := field{at: int(bits / 8), bytes: size}
		if n := uint32(m.BitfieldSize); n > 0 {
			is.first, is.bits, is.bytes = bits%8, n, int((bits%8+n+7)/8)
		}
		f(m, is)
	}
}

// in is the field's content in a copy of a socket.
func (f field) in(sock []byte) []byte {
	if f.bits > 0 {
		return binary.NativeEndian.AppendUint32(nil, f.number(sock))
	}
	return sock[f.at : f.at+f.bytes]
}

// number is one of at most 32 bits, or a bit field.
func (f field) number(sock []byte) uint32 {
	var b [4]byte
	copy(b[:], sock[f.at:f.at+f.bytes])
	n := binary.NativeEndian.Uint32(b[:]) >> f.first
	if f.bits > 0 {
		n &= 1<<f.bits - 1
	}
	return n
}

// A Glance is what can be seen at once of a socket whose process stands still.
type Glance struct {
	Socket   *Socket // without options
	settings string  // what its options depend on
	ipv6     bool
}

// Glance looks at a copy of a socket, of at least Bytes. It is nil if the socket is no
// connection, or has something special: then Look tells more.
func (l *Layout) Glance(sock []byte, uid, gid uint32) *Glance {
	if len(sock) < l.Bytes {
		return nil
	}
	family, state := l.family.number(sock), State(l.state.number(sock))
	if _, ok := stateNames[state]; !ok || !state.Connected() || family != unix.AF_INET && family != unix.AF_INET6 ||
		l.typ.number(sock) != unix.SOCK_STREAM || l.protocol.number(sock) != unix.IPPROTO_TCP {
		return nil
	}
	for _, f := range l.plain {
		for _, b := range f.in(sock) {
			if b != 0 {
				return nil
			}
		}
	}
	g := &Glance{ipv6: family == unix.AF_INET6}
	local, remote, parts := l.local4, l.remote4, l.settings4
	if g.ipv6 {
		local, remote, parts = l.local6, l.remote6, l.settings6
	}
	here, okHere := netip.AddrFromSlice(local.in(sock))
	there, okThere := netip.AddrFromSlice(remote.in(sock))
	if !okHere || !okThere || here.IsUnspecified() || here.IsLinkLocalUnicast() || there.IsLinkLocalUnicast() {
		return nil
	}
	g.Socket = &Socket{
		State: state, IPv6: g.ipv6, UID: uid, GID: gid,
		Local:   netip.AddrPortFrom(here, uint16(l.portHere.number(sock))),
		Remote:  netip.AddrPortFrom(there, binary.BigEndian.Uint16(l.remotePort.in(sock))),
		Buffers: inet.Buffers{Send: l.sendBuffer.number(sock), Receive: l.receiveBuffer.number(sock), Locks: l.locks.number(sock) & 3},
	}
	var key []byte
	for _, f := range parts {
		key = append(key, f.in(sock)...)
	}
	g.settings = string(key)
	g.Socket.Own = []inet.Option{
		{Level: unix.SOL_TCP, Name: unix.TCP_WINDOW_CLAMP, Value: encode(l.clamp.number(sock))},
		{Level: unix.SOL_SOCKET, Name: unix.SO_INCOMING_CPU, Value: encode(l.cpu.number(sock))},
	}
	const most = 255 // beyond that it is a negative number: the route's
	if hops := l.hops.number(sock); g.ipv6 && hops <= most {
		g.Socket.Own = append(g.Socket.Own, inet.Option{Level: unix.SOL_IPV6, Name: unix.IPV6_UNICAST_HOPS, Value: encode(hops)})
	}
	return g
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
	key := g.settings
	if g.ipv6 {
		key = "6" + key
	}
	known, ok := all[key]
	if !ok {
		opened, err := fd()
		if err != nil {
			return err
		}
		defer unix.Close(opened)
		read, err := inet.TCP.Read(opened, g.ipv6)
		if err != nil {
			return err
		}
		for _, o := range read {
			if !own[[2]int{o.Level, o.Name}] {
				known = append(known, o)
			}
		}
		all[key] = known
	}
	g.Socket.Options = known
	return nil
}
