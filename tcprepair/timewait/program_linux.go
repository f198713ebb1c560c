package timewait

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/tcprepair/kernel"
)

// A record is what the program writes of one socket: two clocks and the struct, padded.
const (
	recordNow     = 8 * iota // CLOCK_MONOTONIC in nanoseconds
	recordJiffies            // the clock of its timer
	recordSocket
)

// The stack of a program has 512 bytes: a record, an address and what the compiler of the kernel needs.
const (
	maxRecord    = 440
	addressBytes = 16
)

// counts are the value of a map: how many records were written, how many may be, and how many
// sockets were passed over for that.
const (
	countWritten = 8 * iota
	countLimit
	countMore
	countBytes
)

func (l *layout) record() int { return recordSocket + (int(l.bytes)+7)/8*8 }

// key is an address in the map of those that are asked for: IPv4 ones in IPv6 notation.
func key(a netip.Addr) [addressBytes]byte { return a.WithZone("").As16() }

// program is, in the words of C,
//
//	if (!ctx->sk_common || ctx->sk_common->skc_state != TCP_TIME_WAIT) return 0;
//	tw = bpf_skc_to_tcp_timewait_sock(ctx->sk_common);
//	if (!tw) return 0;
//	record r = { bpf_ktime_get_ns(), bpf_jiffies64(), *tw };
//	if (!lookup(addresses, address(r))) return 0;
//	if (counts->written >= counts->limit) { counts->more++; return 0; }
//	if (!bpf_seq_write(ctx->meta->seq, &r, sizeof(r))) counts->written++;
//
// What does not fit into the reader's buffer is shown again, so it is not counted. The helpers are
// reserved to programs under a licence that is compatible with the kernel's; these few instructions are
// offered under either.
func program(l *layout, addresses, counts *ebpf.Map) (*ebpf.ProgramSpec, error) {
	record := l.record()
	if record > maxRecord {
		return nil, fmt.Errorf("struct tcp_timewait_sock has %d bytes", l.bytes)
	}
	frame := int16(-record)
	at := func(f kernel.Field) int16 { return frame + recordSocket + int16(f.Offset()) }
	address := frame - addressBytes
	is := asm.Instructions{
		// struct bpf_iter__tcp { meta, sk_common, uid }
		asm.LoadMem(asm.R7, asm.R1, 8, asm.DWord),
		asm.JEq.Imm(asm.R7, 0, "out"),
		asm.LoadMem(asm.R6, asm.R1, 0, asm.DWord),
		asm.LoadMem(asm.R1, asm.R7, int16(l.state.Offset()), asm.Byte),
		asm.JNE.Imm(asm.R1, unix.BPF_TCP_TIME_WAIT, "out"),
		asm.Mov.Reg(asm.R1, asm.R7),
		asm.FnSkcToTcpTimewaitSock.Call(),
		asm.JEq.Imm(asm.R0, 0, "out"),
		asm.Mov.Reg(asm.R3, asm.R0),
		asm.Mov.Imm(asm.R1, 0),
		asm.StoreMem(asm.RFP, frame+int16(record)-8, asm.R1, asm.DWord), // the padding
		asm.Mov.Reg(asm.R1, asm.RFP),
		asm.Add.Imm(asm.R1, int32(frame+recordSocket)),
		asm.Mov.Imm(asm.R2, int32(l.bytes)),
		asm.FnProbeReadKernel.Call(),
		asm.JNE.Imm(asm.R0, 0, "out"),

		asm.LoadMem(asm.R1, asm.RFP, at(l.family), asm.Half),
		asm.JEq.Imm(asm.R1, unix.AF_INET, "ip4"),
	}
	if l.saddr6 != (kernel.Field{}) {
		is = append(is,
			asm.LoadMem(asm.R1, asm.RFP, at(l.saddr6), asm.DWord),
			asm.StoreMem(asm.RFP, address, asm.R1, asm.DWord),
			asm.LoadMem(asm.R1, asm.RFP, at(l.saddr6)+8, asm.DWord),
			asm.StoreMem(asm.RFP, address+8, asm.R1, asm.DWord),
			asm.Ja.Label("known"))
	} else {
		is = append(is, asm.Ja.Label("out"))
	}
	is = append(is,
		asm.Mov.Imm(asm.R1, 0).WithSymbol("ip4"),
		asm.StoreMem(asm.RFP, address, asm.R1, asm.DWord),
		asm.LoadImm(asm.R1, int64(binary.NativeEndian.Uint32([]byte{0, 0, 0xff, 0xff})), asm.DWord),
		asm.StoreMem(asm.RFP, address+8, asm.R1, asm.Word),
		asm.LoadMem(asm.R1, asm.RFP, at(l.saddr), asm.Word),
		asm.StoreMem(asm.RFP, address+12, asm.R1, asm.Word),

		asm.LoadMapPtr(asm.R1, addresses.FD()).WithSymbol("known"),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, int32(address)),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "out"),
		asm.LoadMapValue(asm.R9, counts.FD(), 0),
		asm.LoadMem(asm.R1, asm.R9, countWritten, asm.DWord),
		asm.LoadMem(asm.R2, asm.R9, countLimit, asm.DWord),
		asm.JGE.Reg(asm.R1, asm.R2, "more"),

		asm.FnKtimeGetNs.Call(),
		asm.StoreMem(asm.RFP, frame+recordNow, asm.R0, asm.DWord),
		asm.FnJiffies64.Call(),
		asm.StoreMem(asm.RFP, frame+recordJiffies, asm.R0, asm.DWord),
		asm.LoadMem(asm.R1, asm.R6, 0, asm.DWord), // struct bpf_iter_meta: seq is the first
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, int32(frame)),
		asm.Mov.Imm(asm.R3, int32(record)),
		asm.FnSeqWrite.Call(),
		asm.JNE.Imm(asm.R0, 0, "out"),
		asm.LoadMem(asm.R1, asm.R9, countWritten, asm.DWord),
		asm.Add.Imm(asm.R1, 1),
		asm.StoreMem(asm.R9, countWritten, asm.R1, asm.DWord),
		asm.Ja.Label("out"),

		asm.LoadMem(asm.R1, asm.R9, countMore, asm.DWord).WithSymbol("more"),
		asm.Add.Imm(asm.R1, 1),
		asm.StoreMem(asm.R9, countMore, asm.R1, asm.DWord),
		asm.Mov.Imm(asm.R0, 0).WithSymbol("out"),
		asm.Return())
	return &ebpf.ProgramSpec{
		Name: "pagurus_timewait", Type: ebpf.Tracing, AttachType: ebpf.AttachTraceIter, AttachTo: "tcp",
		Instructions: is, License: "Dual MIT/GPL",
	}, nil
}
