package acceptqueue

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/tcprepair"
)

// kfunc makes an acknowledgement of a listener the last packet of a handshake whose results
// are given to it (net/core/filter.c, Linux 6.8).
const kfunc = "bpf_sk_assign_tcp_reqsk"

// Supported tells why this kernel cannot Put; nil, if it can. The error wraps
// errors.ErrUnsupported where that is the kernel's.
func Supported() error {
	_, err := lookUpKernel()
	return err
}

// A kernel is what the program needs to know of it.
type kernel struct {
	function btf.TypeID // the number of its function among its types
	group    int16      // of struct sock, where a listener's group is: struct sock_reuseport,
	members  int16      // of which this is the number of its listeners
}

func lookUpKernel() (k kernel, err error) {
	types, err := btf.LoadKernelSpec()
	if err != nil {
		return k, fmt.Errorf("filling accept queues needs a kernel that describes its types (CONFIG_DEBUG_INFO_BTF): %w", unsupported(err))
	}
	var f *btf.Func
	if err := types.TypeByName(kfunc, &f); err != nil {
		return k, fmt.Errorf("filling accept queues needs Linux 6.8 with CONFIG_SYN_COOKIES, for %s: %w", kfunc, unsupported(err))
	}
	if k.function, err = types.TypeID(f); err != nil {
		return k, err
	}
	if k.group, err = offsetOf(types, "sock", "sk_reuseport_cb"); err != nil {
		return k, err
	}
	k.members, err = offsetOf(types, "sock_reuseport", "num_socks")
	return k, err
}

func offsetOf(types *btf.Spec, name, member string) (int16, error) {
	var s *btf.Struct
	if err := types.TypeByName(name, &s); err != nil {
		return 0, fmt.Errorf("looking for struct %s: %w", name, unsupported(err))
	}
	for _, m := range s.Members {
		if m.Name == member {
			return int16(m.Offset.Bytes()), nil
		}
	}
	return 0, fmt.Errorf("struct %s has no %s: %w", name, member, errors.ErrUnsupported)
}

func unsupported(err error) error {
	if errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, btf.ErrNotFound) {
		return errors.Join(errors.ErrUnsupported, err)
	}
	return err
}

// An order is what the program is to do with an acknowledgement: the value of its map.
// First in it is struct bpf_tcp_req_attrs (include/net/tcp.h), in which nothing is aligned
// to more than four bytes.
type order struct {
	TSVal, TSEcr              uint32
	MSS                       uint16
	ReceiveScale, SendScale   uint8
	ECN, Scaled, SACK, Stamps uint8
	Micro                     uint8
	_                         [3]uint8

	Group  uint32 // if not 0, there must be so many listeners in the listener's group
	Done   uint32 // it has seen the packet, and
	Result int32  // this is what the kernel has said
}

const (
	attrsBytes   = 20
	groupOffset  = attrsBytes
	doneOffset   = groupOffset + 4
	resultOffset = doneOffset + 4
	orderBytes   = resultOffset + 4
)

// nobody is a number of listeners that no group has.
const nobody = 1<<32 - 1

// A tuple is the map's key: of a packet of IPv4 or IPv6 the addresses and the ports behind
// them, as they are in it, the source's first, and zeros.
type tuple [tupleBytes]byte

const (
	tupleBytes = 40
	tuple4     = 4 + 4 + 2 + 2
	tuple6     = 16 + 16 + 2 + 2
)

func tupleOf(s *tcprepair.Socket) (t tuple) {
	key := append(s.Remote.Addr().Unmap().AsSlice(), s.Local.Addr().Unmap().AsSlice()...)
	key = binary.BigEndian.AppendUint16(key, s.Remote.Port())
	copy(t[:], binary.BigEndian.AppendUint16(key, s.Local.Port()))
	return t
}

// Offsets in struct __sk_buff (include/uapi/linux/bpf.h) and in the IP headers (RFC 791,
// RFC 8200). Ours have no options.
const (
	skbProtocol = 16
	skbPriority = 32

	ip4Protocol  = 9
	ip4Addresses = 12
	ip6Protocol  = 6
	ip6Addresses = 8

	headerNetwork = 1 // BPF_HDR_START_NET
)

// Verdicts (include/uapi/linux/bpf.h, enum tcx_action_base).
const (
	next = -1
	pass = 0
	drop = 2
)

// program is, in the words of C,
//
//	if (skb->priority != Priority) return NEXT;
//	tuple t = {}; ... // of TCP over IPv4 or IPv6, else return NEXT
//	order *o = lookup(orders, &t);
//	if (!o || o->done) return NEXT;
//	o->done = 1;
//	o->result = -ENOTCONN;
//	sk = lookup(listeners, 0);
//	if (!sk) return DROP;
//	if (o->group && !(sk->sk_reuseport_cb && sk->sk_reuseport_cb->num_socks == o->group))
//		o->result = -EXDEV;
//	else
//		o->result = bpf_sk_assign_tcp_reqsk(skb, sk, o, 20);
//	release(sk);
//	return o->result ? DROP : PASS;
//
// Dropped, a packet is not answered: so nobody is sent a reset. The kernel's functions are
// reserved to programs under a licence that is compatible with its own; these few
// instructions are offered under either.
func program(k kernel, orders, listeners *ebpf.Map) *ebpf.ProgramSpec {
	const frame = -tupleBytes
	const scratch = frame - 8
	load := func(offset, at, length int32) asm.Instructions {
		return asm.Instructions{
			asm.Mov.Reg(asm.R1, asm.R6),
			asm.Mov.Imm(asm.R2, offset),
			asm.Mov.Reg(asm.R3, asm.RFP),
			asm.Add.Imm(asm.R3, at),
			asm.Mov.Imm(asm.R4, length),
			asm.Mov.Imm(asm.R5, headerNetwork),
			asm.FnSkbLoadBytesRelative.Call(),
			asm.JNE.Imm(asm.R0, 0, "next"),
		}
	}
	var is asm.Instructions
	add := func(more ...asm.Instruction) { is = append(is, more...) }
	add(
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMem(asm.R2, asm.R6, skbPriority, asm.Word),
		asm.JNE.Imm(asm.R2, tcprepair.Priority, "next"))
	add(asm.Mov.Imm(asm.R2, 0))
	for at := int16(scratch); at < 0; at += 8 {
		add(asm.StoreMem(asm.RFP, at, asm.R2, asm.DWord))
	}
	add(
		asm.LoadMem(asm.R7, asm.R6, skbProtocol, asm.Word),
		asm.JEq.Imm(asm.R7, int32(bigEndian16(unix.ETH_P_IP)), "ip4"),
		asm.JNE.Imm(asm.R7, int32(bigEndian16(unix.ETH_P_IPV6)), "next"))
	add(load(ip6Protocol, scratch, 1)...)
	add(load(ip6Addresses, frame, tuple6)...)
	add(asm.Ja.Label("loaded"))
	four := load(ip4Protocol, scratch, 1)
	four[0] = four[0].WithSymbol("ip4")
	add(four...)
	add(load(ip4Addresses, frame, tuple4)...)
	add(
		asm.LoadMem(asm.R2, asm.RFP, scratch, asm.Byte).WithSymbol("loaded"),
		asm.JNE.Imm(asm.R2, unix.IPPROTO_TCP, "next"),

		asm.LoadMapPtr(asm.R1, orders.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, frame),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "next"),
		asm.Mov.Reg(asm.R7, asm.R0),
		asm.LoadMem(asm.R2, asm.R7, doneOffset, asm.Word),
		asm.JNE.Imm(asm.R2, 0, "next"),
		asm.StoreImm(asm.R7, doneOffset, 1, asm.Word),
		asm.StoreImm(asm.R7, resultOffset, -int64(unix.ENOTCONN), asm.Word),

		asm.StoreImm(asm.RFP, scratch, 0, asm.Word),
		asm.LoadMapPtr(asm.R1, listeners.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, scratch),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "drop"),
		asm.Mov.Reg(asm.R8, asm.R0),

		asm.LoadMem(asm.R2, asm.R7, groupOffset, asm.Word),
		asm.JEq.Imm(asm.R2, 0, "assign"),
		asm.Mov.Imm(asm.R9, -int32(unix.EXDEV)),
		asm.Mov.Reg(asm.R1, asm.R8),
		asm.FnSkcToTcpSock.Call(), // whose first member is struct sock, in others
		asm.JEq.Imm(asm.R0, 0, "done"),
		asm.LoadMem(asm.R1, asm.R0, k.group, asm.DWord),
		asm.JEq.Imm(asm.R1, 0, "done"),
		asm.LoadMem(asm.R1, asm.R1, k.members, asm.Half),
		asm.LoadMem(asm.R2, asm.R7, groupOffset, asm.Word),
		asm.JNE.Reg(asm.R1, asm.R2, "done"),

		asm.Mov.Reg(asm.R1, asm.R6).WithSymbol("assign"),
		asm.Mov.Reg(asm.R2, asm.R8),
		asm.Mov.Reg(asm.R3, asm.R7),
		asm.Mov.Imm(asm.R4, attrsBytes),
		asm.Instruction{OpCode: asm.OpCode(asm.JumpClass).SetJumpOp(asm.Call), Src: asm.PseudoKfuncCall, Constant: int64(k.function)},
		asm.Mov.Reg(asm.R9, asm.R0),
		asm.StoreMem(asm.R7, resultOffset, asm.R9, asm.Word).WithSymbol("done"),
		asm.Mov.Reg(asm.R1, asm.R8),
		asm.FnSkRelease.Call(),
		asm.JNE.Imm32(asm.R9, 0, "drop"),
		asm.Mov.Imm(asm.R0, pass),
		asm.Return(),

		asm.Mov.Imm(asm.R0, drop).WithSymbol("drop"),
		asm.Return(),
		asm.Mov.Imm(asm.R0, next).WithSymbol("next"),
		asm.Return())
	return &ebpf.ProgramSpec{
		Name: "pagurus_accept", Type: ebpf.SchedCLS, AttachType: ebpf.AttachTCXIngress,
		Instructions: is, License: "Dual MIT/GPL",
	}
}

// bigEndian16 is how a field of the network's byte order reads here.
func bigEndian16(n uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, n))
}
