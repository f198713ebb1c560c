package procfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"
)

// A DescriptorReader reads a process's table of descriptors at once, and its sockets of TCP: to
// follow links, and to read a file of fdinfo and an inode for each of a thousand connections
// takes a tenth of a second. A BPF iterator (task_file) writes out what all of that tells.
//
// Without BPF (no BTF, no permission, a kernel before 6.1) it knows of none. A
// DescriptorReader may be used from any goroutine.
type DescriptorReader struct {
	program *ebpf.Program // nil: no BPF
	copy    *ebpf.Map     // where the program copies sockets to

	mu     sync.Mutex // one reading at a time
	buffer []byte
}

// A Descriptor is one of a process's.
type Descriptor struct {
	FD      int
	CloExec bool
	OpenFile
}

// OpenFile is an open file description, as far as can be seen from outside.
type OpenFile struct {
	Inode    uint64
	Mode     uint32 // as st_mode of stat(2), with st_uid and st_gid
	UID, GID uint32
	Flags    int  // as F_GETFL of fcntl(2)
	Special  bool // it has an owner or a signal (fcntl(2), F_SETOWN, F_SETSIG), or its file has locks
	// Of a socket of TCP (struct tcp6_sock, include/linux/ipv6.h): what lies in the kernel's
	// memory, and the cookie of its network namespace (SO_NETNS_COOKIE).
	TCP     []byte
	Network uint64
}

// NewDescriptorReader loads the BPF program. The error says why there is none; the reader
// works all the same.
func NewDescriptorReader() (*DescriptorReader, error) {
	r := &DescriptorReader{}
	if err := r.load(); err != nil {
		return &DescriptorReader{}, errors.Join(fmt.Errorf("loading the iterator over descriptors: %w", err), r.Close())
	}
	if err := r.Each(Process{PID: os.Getpid()}, func(*Descriptor) error { return nil }); err != nil {
		return &DescriptorReader{}, errors.Join(fmt.Errorf("trying the iterator over descriptors: %w", err), r.Close())
	}
	return r, nil
}

// Close unloads the program.
func (r *DescriptorReader) Close() error {
	if r == nil {
		return nil
	}
	var errs []error
	if r.program != nil {
		errs = append(errs, r.program.Close())
	}
	if r.copy != nil {
		errs = append(errs, r.copy.Close())
	}
	return errors.Join(errs...)
}

// Each calls visit for those of a process by their numbers, until it fails: for none without
// BPF. What it is given is only good until it returns.
func (r *DescriptorReader) Each(p Process, visit func(*Descriptor) error) error {
	if r == nil || r.program == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	iterator, err := openTaskIterator(r.program.FD(), p.PID)
	if err != nil {
		return fmt.Errorf("iterating over the descriptors of %d: %w", p.PID, err)
	}
	defer iterator.Close()
	if r.buffer == nil {
		r.buffer = make([]byte, bufferBytes)
	}
	for kept := 0; ; {
		n, err := iterator.Read(r.buffer[kept:])
		if errors.Is(err, io.EOF) && kept == 0 {
			return nil
		}
		if err != nil {
			return fmt.Errorf("iterating over the descriptors of %d: %w", p.PID, err)
		}
		data := r.buffer[:kept+n]
		for {
			d, bytes := firstDescriptor(data)
			if d == nil {
				break
			}
			if err := visit(d); err != nil {
				return err
			}
			data = data[bytes:]
		}
		kept = copy(r.buffer, data)
	}
}

// bufferBytes has room for several records.
const bufferBytes = 64 << 10

// The record that the program writes of a descriptor: numbers of 8 bytes, and a socket.
const (
	descriptorFD = 8 * iota
	descriptorInode
	descriptorMode
	descriptorUID
	descriptorGID
	descriptorFlags
	descriptorOwner
	descriptorSignal // before Linux 6.12, that of an owner; the owner has it since
	descriptorLocks
	descriptorCloExec // the word of the table's bitmap in which the descriptor is
	descriptorNetwork
	descriptorSocket // how many bytes follow
	descriptorScratch

	descriptorBytes
)

// firstDescriptor is the first one that the program has written, and how long its record is;
// nil if that is cut off.
func firstDescriptor(data []byte) (*Descriptor, int) {
	if len(data) < descriptorBytes {
		return nil, 0
	}
	word := func(at int) uint64 { return binary.NativeEndian.Uint64(data[at:]) }
	d := &Descriptor{
		FD:      int(word(descriptorFD)),
		CloExec: word(descriptorCloExec)>>(word(descriptorFD)%64)&1 != 0,
		OpenFile: OpenFile{
			Inode: word(descriptorInode),
			Mode:  uint32(word(descriptorMode)), UID: uint32(word(descriptorUID)), GID: uint32(word(descriptorGID)), Flags: int(word(descriptorFlags)),
			Special: word(descriptorOwner) != 0 || word(descriptorSignal) != 0 || word(descriptorLocks) != 0,
			Network: word(descriptorNetwork),
		},
	}
	bytes := descriptorBytes + int(word(descriptorSocket))
	if len(data) < bytes {
		return nil, 0
	}
	if bytes > descriptorBytes {
		d.TCP = data[descriptorBytes:bytes]
	}
	return d, bytes
}

// load loads the program
//
//	if (!ctx->task || !ctx->file || ctx->task->pid != ctx->task->tgid) return 0;
//	files = ctx->task->files, inode = ctx->file->f_inode;
//	record = {
//		fd, inode->i_ino, inode->i_mode, inode->i_uid, inode->i_gid, file->f_flags, owner, signal, inode->i_flctx,
//		files->fdt->close_on_exec[fd / 64],
//	};
//	sk = file->private_data->sk;
//	if ((inode->i_mode & S_IFMT) == S_IFSOCK && sk->sk_protocol == IPPROTO_TCP && sk->sk_type == SOCK_STREAM) {
//		record.network = sk->__sk_common.skc_net.net->net_cookie;
//		record.socket = sizeof(struct tcp6_sock);
//		bpf_probe_read_kernel(copy, sizeof(struct tcp6_sock), sk);
//	}
//	bpf_seq_write(ctx->meta->seq, record, sizeof(record));
//	if (record.socket) bpf_seq_write(ctx->meta->seq, copy, sizeof(struct tcp6_sock));
//
// where owner and signal are file->f_owner.pid and .signum or, from Linux 6.12 on, file->f_owner and 0.
func (r *DescriptorReader) load() error {
	kernel, err := btf.LoadKernelSpec()
	if err != nil {
		return err
	}
	var socket *btf.Struct
	if err := kernel.TypeByName("tcp6_sock", &socket); err != nil {
		return err
	}
	r.copy, err = ebpf.NewMap(&ebpf.MapSpec{Name: "pagurus_files", Type: ebpf.Array, KeySize: 4, ValueSize: socket.Size, MaxEntries: 1})
	if err != nil {
		return err
	}
	instructions, err := r.instructions(kernel, int32(socket.Size))
	if err != nil {
		return err
	}
	r.program, err = ebpf.NewProgram(&ebpf.ProgramSpec{
		Name:         "pagurus_files",
		Type:         ebpf.Tracing,
		AttachType:   ebpf.AttachTraceIter,
		AttachTo:     "task_file",
		Instructions: instructions,
		License:      "Dual MIT/GPL",
	})
	return err
}

func (r *DescriptorReader) instructions(kernel *btf.Spec, socketBytes int32) (asm.Instructions, error) {
	offset := make(map[string]int16)
	for _, f := range [][2]string{
		{"task_struct", "pid"},
		{"task_struct", "tgid"},
		{"task_struct", "files"},
		{"files_struct", "fdt"},
		{"fdtable", "close_on_exec"},
		{"file", "f_inode"},
		{"file", "f_flags"},
		{"file", "f_owner"},
		{"file", "private_data"},
		{"inode", "i_ino"},
		{"inode", "i_mode"},
		{"inode", "i_uid"},
		{"inode", "i_gid"},
		{"inode", "i_flctx"},
		{"fown_struct", "pid"},
		{"fown_struct", "signum"},
		{"socket", "sk"},
		{"sock", "sk_protocol"},
		{"sock", "sk_type"},
		{"sock_common", "skc_net"},
		{"net", "net_cookie"},
	} {
		var err error
		if offset[f[0]+"."+f[1]], err = fieldOffset(kernel, f[0], f[1]); err != nil {
			return nil, err
		}
	}
	owner := offset["file.f_owner"]
	embedded, err := isStruct(kernel, "file", "f_owner")
	if err != nil {
		return nil, err
	}
	const (
		base    = -descriptorBytes
		scratch = base + descriptorScratch
	)
	copyOwner := asm.Instructions{
		asm.LoadMem(asm.R1, asm.R7, owner, asm.DWord),
		asm.StoreMem(asm.RFP, base+descriptorOwner, asm.R1, asm.DWord),
	}
	if embedded {
		copyOwner = asm.Instructions{
			asm.LoadMem(asm.R1, asm.R7, owner+offset["fown_struct.pid"], asm.DWord),
			asm.StoreMem(asm.RFP, base+descriptorOwner, asm.R1, asm.DWord),
			asm.LoadMem(asm.R1, asm.R7, owner+offset["fown_struct.signum"], asm.Word),
			asm.StoreMem(asm.RFP, base+descriptorSignal, asm.R1, asm.DWord),
		}
	}
	// probe reads size bytes at R3 into the record; where there are none, nothing.
	probe := func(to int16, size int32) asm.Instructions {
		return asm.Instructions{
			asm.Mov.Reg(asm.R1, asm.RFP),
			asm.Add.Imm(asm.R1, int32(to)),
			asm.Mov.Imm(asm.R2, size),
			asm.FnProbeReadKernel.Call(),
		}
	}
	// field reads one of the socket at R9.
	field := func(to int16, name string, size int32) asm.Instructions {
		return append(asm.Instructions{asm.Mov.Reg(asm.R3, asm.R9), asm.Add.Imm(asm.R3, int32(offset[name]))}, probe(to, size)...)
	}
	all := asm.Instructions{
		// struct bpf_iter__task_file { meta, task, fd, file }
		asm.LoadMem(asm.R7, asm.R1, 24, asm.DWord),
		asm.JEq.Imm(asm.R7, 0, "out"),
		asm.LoadMem(asm.R8, asm.R1, 8, asm.DWord),
		asm.JEq.Imm(asm.R8, 0, "out"),
		asm.LoadMem(asm.R2, asm.R8, offset["task_struct.pid"], asm.Word),
		asm.LoadMem(asm.R3, asm.R8, offset["task_struct.tgid"], asm.Word),
		asm.JNE.Reg(asm.R2, asm.R3, "out"),
		asm.LoadMem(asm.R6, asm.R1, 0, asm.DWord),
		asm.LoadMem(asm.R9, asm.R1, 16, asm.Word),
		asm.Mov.Imm(asm.R2, 0),
	}
	for at := int16(base); at < 0; at += 8 {
		all = append(all, asm.StoreMem(asm.RFP, at, asm.R2, asm.DWord))
	}
	all = append(all,
		asm.StoreMem(asm.RFP, base+descriptorFD, asm.R9, asm.DWord),
		asm.LoadMem(asm.R1, asm.R7, offset["file.f_flags"], asm.Word),
		asm.StoreMem(asm.RFP, base+descriptorFlags, asm.R1, asm.DWord),
	)
	all = append(all, copyOwner...)
	all = append(all, asm.LoadMem(asm.R2, asm.R7, offset["file.f_inode"], asm.DWord))
	for _, f := range []struct {
		name string
		to   int16
		size asm.Size
	}{
		{"inode.i_ino", descriptorInode, asm.DWord},
		{"inode.i_mode", descriptorMode, asm.Half},
		{"inode.i_uid", descriptorUID, asm.Word},
		{"inode.i_gid", descriptorGID, asm.Word},
		{"inode.i_flctx", descriptorLocks, asm.DWord},
	} {
		all = append(all, asm.LoadMem(asm.R1, asm.R2, offset[f.name], f.size), asm.StoreMem(asm.RFP, base+f.to, asm.R1, asm.DWord))
	}
	all = append(all,
		// The bit that says whether exec closes it.
		asm.LoadMem(asm.R1, asm.R8, offset["task_struct.files"], asm.DWord),
		asm.LoadMem(asm.R1, asm.R1, offset["files_struct.fdt"], asm.DWord),
		asm.LoadMem(asm.R3, asm.R1, offset["fdtable.close_on_exec"], asm.DWord),
		asm.RSh.Imm(asm.R9, 6),
		asm.LSh.Imm(asm.R9, 3),
		asm.Add.Reg(asm.R3, asm.R9))
	all = append(all, probe(base+descriptorCloExec, 8)...)
	all = append(all,
		asm.LoadMem(asm.R1, asm.RFP, base+descriptorMode, asm.DWord),
		asm.And.Imm(asm.R1, unix.S_IFMT),
		asm.JNE.Imm(asm.R1, unix.S_IFSOCK, "write"),
		asm.LoadMem(asm.R3, asm.R7, offset["file.private_data"], asm.DWord),
		asm.Add.Imm(asm.R3, int32(offset["socket.sk"])))
	all = append(all, probe(scratch, 8)...)
	all = append(all, asm.LoadMem(asm.R9, asm.RFP, scratch, asm.DWord)) // struct sock begins with struct sock_common
	clear := asm.Instructions{asm.Mov.Imm(asm.R1, 0), asm.StoreMem(asm.RFP, scratch, asm.R1, asm.DWord)}
	is := func(name string, what int32) asm.Instructions {
		is := append(slices.Clone(clear), field(scratch, name, 2)...)
		return append(is, asm.LoadMem(asm.R1, asm.RFP, scratch, asm.DWord), asm.JNE.Imm(asm.R1, what, "write"))
	}
	all = append(all, is("sock.sk_protocol", unix.IPPROTO_TCP)...)
	all = append(all, is("sock.sk_type", unix.SOCK_STREAM)...)
	all = append(all, field(scratch, "sock_common.skc_net", 8)...)
	all = append(all,
		asm.LoadMem(asm.R3, asm.RFP, scratch, asm.DWord),
		asm.Add.Imm(asm.R3, int32(offset["net.net_cookie"])))
	all = append(all, probe(base+descriptorNetwork, 8)...)
	all = append(all,
		asm.LoadMapValue(asm.R1, r.copy.FD(), 0),
		asm.Mov.Imm(asm.R2, socketBytes),
		asm.Mov.Reg(asm.R3, asm.R9),
		asm.FnProbeReadKernel.Call(),
		asm.JNE.Imm(asm.R0, 0, "write"),
		asm.Mov.Imm(asm.R1, socketBytes),
		asm.StoreMem(asm.RFP, base+descriptorSocket, asm.R1, asm.DWord),
		asm.LoadMem(asm.R1, asm.R6, 0, asm.DWord).WithSymbol("write"), // struct bpf_iter_meta: seq is the first
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, base),
		asm.Mov.Imm(asm.R3, descriptorBytes),
		asm.FnSeqWrite.Call(),
		asm.LoadMem(asm.R1, asm.RFP, base+descriptorSocket, asm.DWord),
		asm.JEq.Imm(asm.R1, 0, "out"),
		asm.LoadMem(asm.R1, asm.R6, 0, asm.DWord),
		asm.LoadMapValue(asm.R2, r.copy.FD(), 0),
		asm.Mov.Imm(asm.R3, socketBytes),
		asm.FnSeqWrite.Call(),
		asm.Mov.Imm(asm.R0, 0).WithSymbol("out"),
		asm.Return())
	return all, nil
}
