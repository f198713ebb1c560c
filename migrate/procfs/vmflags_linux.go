package procfs

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
)

// A FlagReader reads the flags of mappings without the walk over all page
// tables that reading smaps costs. A small BPF program (an iterator over the
// mappings of one task, Documentation/bpf/bpf_iterators.rst) writes out the
// kernel's own vm_flags. What their bits mean is nobody's promise, but smaps is
// a function of them alone: so each value is looked up in what smaps said of
// the same value before, and a value never seen before costs one reading of
// smaps.
//
// Without BPF (no BTF, no permission, a kernel before 6.1) every reading is one
// of smaps. A FlagReader may be used from any goroutine.
type FlagReader struct {
	program *ebpf.Program // nil: no BPF

	mu      sync.Mutex
	learned map[uint64]VMFlags
}

// NewFlagReader loads the BPF program. The error says why there is none; the
// reader works all the same.
func NewFlagReader() (*FlagReader, error) {
	r := &FlagReader{learned: make(map[uint64]VMFlags)}
	program, err := loadVMAIterator()
	if err != nil {
		return r, fmt.Errorf("loading the iterator over mappings: %w", err)
	}
	r.program = program
	if _, err := r.kernelFlags(Process{os.Getpid()}); err != nil {
		program.Close()
		r.program = nil
		return r, fmt.Errorf("trying the iterator over mappings: %w", err)
	}
	return r, nil
}

// Close unloads the program.
func (r *FlagReader) Close() error {
	if r.program == nil {
		return nil
	}
	return r.program.Close()
}

// Flags reads the flags of all mappings of a process, by their start. Called
// while the process still runs, it learns what it needs to answer quickly
// when the process has been stopped.
func (r *FlagReader) Flags(p Process) (map[uint64]VMFlags, error) {
	if r.program == nil {
		return p.Smaps()
	}
	before, err := r.kernelFlags(p)
	if err != nil {
		return nil, err
	}
	if flags, ok := r.translate(before); ok {
		return flags, nil
	}
	flags, err := p.Smaps()
	if err != nil {
		return nil, err
	}
	after, err := r.kernelFlags(p)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for start, vma := range before {
		if words, ok := flags[start]; ok && after[start] == vma {
			r.learned[vma.flags] = words
		}
	}
	return flags, nil
}

// translate turns the kernel's bits into words, if all of them are known.
func (r *FlagReader) translate(vmas map[uint64]kernelVMA) (map[uint64]VMFlags, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	flags := make(map[uint64]VMFlags, len(vmas))
	for start, vma := range vmas {
		words, ok := r.learned[vma.flags]
		if !ok {
			return nil, false
		}
		flags[start] = words
	}
	return flags, true
}

// kernelVMA is what the program writes of one mapping, its start left out.
type kernelVMA struct{ end, flags uint64 }

const (
	kernelVMABytes = 24
	maxKernelVMAs  = 1 << 20
)

func (r *FlagReader) kernelFlags(p Process) (map[uint64]kernelVMA, error) {
	iterator, err := openTaskIterator(r.program.FD(), p.PID)
	if err != nil {
		return nil, fmt.Errorf("iterating over the mappings of %d: %w", p.PID, err)
	}
	defer iterator.Close()
	data, err := io.ReadAll(io.LimitReader(iterator, maxKernelVMAs*kernelVMABytes))
	if err != nil {
		return nil, fmt.Errorf("iterating over the mappings of %d: %w", p.PID, err)
	}
	return kernelVMAs(data), nil
}

// kernelVMAs are those that the program has written, by their start.
func kernelVMAs(data []byte) map[uint64]kernelVMA {
	vmas := make(map[uint64]kernelVMA, len(data)/kernelVMABytes)
	for ; len(data) >= kernelVMABytes; data = data[kernelVMABytes:] {
		vmas[binary.NativeEndian.Uint64(data)] = kernelVMA{
			end:   binary.NativeEndian.Uint64(data[8:]),
			flags: binary.NativeEndian.Uint64(data[16:]),
		}
	}
	return vmas
}

// loadVMAIterator loads the program
//
//	if (ctx->vma) bpf_seq_write(ctx->meta->seq, &{vm_start, vm_end, vm_flags}, 24);
//
// The helper is reserved to programs under a licence that is compatible with
// the kernel's; these few instructions are offered under either.
func loadVMAIterator() (*ebpf.Program, error) {
	kernel, err := btf.LoadKernelSpec()
	if err != nil {
		return nil, err
	}
	const frame = -kernelVMABytes
	instructions := asm.Instructions{
		// struct bpf_iter__task_vma { meta, task, vma }
		asm.LoadMem(asm.R7, asm.R1, 16, asm.DWord),
		asm.JEq.Imm(asm.R7, 0, "out"),
		asm.LoadMem(asm.R6, asm.R1, 0, asm.DWord),
	}
	for i, field := range []string{"vm_start", "vm_end", "vm_flags"} {
		offset, err := fieldOffset(kernel, "vm_area_struct", field)
		if err != nil {
			return nil, err
		}
		instructions = append(instructions,
			asm.LoadMem(asm.R1, asm.R7, offset, asm.DWord),
			asm.StoreMem(asm.RFP, int16(frame+8*i), asm.R1, asm.DWord))
	}
	instructions = append(instructions,
		asm.LoadMem(asm.R1, asm.R6, 0, asm.DWord), // struct bpf_iter_meta: seq is the first
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, frame),
		asm.Mov.Imm(asm.R3, kernelVMABytes),
		asm.FnSeqWrite.Call(),
		asm.Mov.Imm(asm.R0, 0).WithSymbol("out"),
		asm.Return())
	return ebpf.NewProgram(&ebpf.ProgramSpec{
		Name:         "pagurus_vmas",
		Type:         ebpf.Tracing,
		AttachType:   ebpf.AttachTraceIter,
		AttachTo:     "task_vma",
		Instructions: instructions,
		License:      "Dual MIT/GPL",
	})
}
