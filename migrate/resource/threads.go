package resource

import (
	"encoding/binary"
	"fmt"
	"strings"
	"structs"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/parasite"
)

// threadRegistrations: what a thread has told the kernel about itself, and its
// registers, which are read here and set last (PutThreads).
var threadRegistrations = processKind{
	name: "threads",
	dump: func(d *ProcessDump) error {
		for i := range d.Process.Threads {
			if err := dumpThread(d, &d.Process.Threads[i]); err != nil {
				return fmt.Errorf("thread %d: %w", d.Process.Threads[i].TID, err)
			}
		}
		return nil
	},
	check: func(c *Check, p *image.Process) {
		if have := c.Host.CPU.XStateBytes; len(p.Threads[0].XState) > have {
			c.Block(migrate.CodeCPU, "choose a host with the same kind of processor", "vector state of %d bytes, the processor there has %d", len(p.Threads[0].XState), have)
		}
	},
	restore: func(r *ProcessRestore) error {
		for i := range r.Process.Threads {
			t := &r.Process.Threads[i]
			if err := restoreThread(r, t); err != nil {
				return fmt.Errorf("thread %d: %w", t.TID, err)
			}
		}
		return nil
	},
}

// CheckCode reports threads of stopped processes that run 32-bit code. The error
// says that there are some: no remote call can be made in them.
func (d *TreeDump) CheckCode(stopped []*parasite.Process) error {
	var err error
	for _, p := range stopped {
		for _, tid := range p.ThreadIDs() {
			if !p.Thread(tid).Runs64Bit() {
				d.Block(migrate.CodeCompat, "run a 64-bit build of it", "thread %d of process %d runs 32-bit code", tid, p.PID())
				err = fmt.Errorf("thread %d: %w", tid, parasite.ErrCompat)
			}
		}
	}
	return err
}

func dumpThread(d *ProcessDump, t *image.Thread) error {
	thread := d.Target.Thread(t.TID)
	regs := thread.Registers()
	if call := thread.Interrupted(); call.InSystemCall() {
		t.Call = &image.SystemCall{Nr: call.Nr, Args: call.Args, Restart: int(call.Restart), Remaining: d.left(t.TID)}
		d.nameCall(t.TID, t.Call, &regs)
	}
	t.Registers = registerBytes(&regs)
	var err error
	if t.XState, err = thread.XState(); err != nil {
		return err
	}
	if t.SignalMask, err = thread.SignalMask(); err != nil {
		return err
	}
	rseq, err := thread.Rseq()
	if err != nil {
		return err
	}
	t.Rseq = image.Rseq{Address: rseq.Address, Bytes: rseq.Size, Signature: rseq.Signature}
	if t.Rseq.Address != 0 {
		if err := abortSequence(d, t, &regs); err != nil {
			return err
		}
	}
	dispatch, err := thread.UserDispatch()
	if err != nil {
		return err
	}
	t.Dispatch = image.UserDispatch(dispatch)
	if has, err := thread.HasShadowStack(); err != nil || has {
		d.Block(migrate.CodeProcessState, "start it without shadow stacks (GLIBC_TUNABLES)", "thread %d has a shadow stack", t.TID)
	}
	if has, err := thread.HasIOPermissions(); err != nil || has {
		d.Block(migrate.CodeProcessState, "start it without access to the ports", "thread %d may use I/O ports", t.TID)
	}
	name, err := d.Proc.Read(fmt.Sprintf("task/%d/comm", t.TID))
	if err != nil {
		return err
	}
	t.Name = strings.TrimSuffix(string(name), "\n")
	return dumpRegistrations(d, t)
}

// dumpRegistrations adds the calls that only the thread itself can make.
func dumpRegistrations(d *ProcessDump, t *image.Thread) error {
	b := d.batch(t.TID)
	stack := b.Space(stackBytes)
	getStack := b.Call(unix.SYS_SIGALTSTACK, 0, stack)
	clear := b.Space(8)
	getClear := b.Call(unix.SYS_PRCTL, unix.PR_GET_TID_ADDRESS, clear, 0, 0, 0)
	head, length := b.Space(8), b.Space(8)
	getList := b.Call(unix.SYS_GET_ROBUST_LIST, 0, head, length)
	d.then(func() error {
		for _, call := range []int{getStack, getClear, getList} {
			if _, err := b.Result(call); err != nil {
				return fmt.Errorf("thread %d: %w", t.TID, err)
			}
		}
		var s stackABI
		parasite.Into(b, stack, &s)
		t.AltStack = image.AltStack{Pointer: s.pointer, Flags: int(s.flags), Bytes: s.size}
		t.ClearTID = uint64s(b.Read(clear, 8))[0]
		t.RobustList = uint64s(b.Read(head, 8))[0]
		t.RobustLen = uint64s(b.Read(length, 8))[0]
		return nil
	})
	return nil
}

// stackABI is struct sigaltstack.
type stackABI struct {
	_       structs.HostLayout
	pointer uint64
	flags   int32
	_       int32
	size    uint64
}

const stackBytes = 24

// abortSequence does what the kernel does to a thread that is interrupted
// within a restartable sequence: it goes on at the sequence's abort handler
// (rseq_ip_fixup, kernel/rseq.c).
func abortSequence(d *ProcessDump, t *image.Thread, regs *parasite.Registers) error {
	const rseqCSOffset = 8 // of struct rseq
	pointer := make([]byte, 8)
	if err := d.Target.ReadMemory(uintptr(t.Rseq.Address+rseqCSOffset), pointer); err != nil {
		return err
	}
	sequence := binary.LittleEndian.Uint64(pointer)
	if sequence == 0 {
		return nil
	}
	// struct rseq_cs: version, flags, start_ip, post_commit_offset, abort_ip.
	raw := make([]byte, 32)
	if err := d.Target.ReadMemory(uintptr(sequence), raw); err != nil {
		return err
	}
	start, length, abort := binary.LittleEndian.Uint64(raw[8:]), binary.LittleEndian.Uint64(raw[16:]), binary.LittleEndian.Uint64(raw[24:])
	if regs.Rip-start < length {
		regs.Rip = abort
		t.Registers = registerBytes(regs)
	}
	return nil
}

func restoreThread(r *ProcessRestore, t *image.Thread) error {
	b := r.Shell.Thread(t.TID).Batch(r.Ctx)
	b.Call(unix.SYS_PRCTL, unix.PR_SET_NAME, b.String(t.Name), 0, 0, 0)
	const onStack = 1 // SS_ONSTACK, only ever reported
	stack := stackABI{pointer: t.AltStack.Pointer, flags: int32(t.AltStack.Flags &^ onStack), size: t.AltStack.Bytes}
	b.Call(unix.SYS_SIGALTSTACK, parasite.Struct(b, &stack), 0)
	b.Call(unix.SYS_SET_TID_ADDRESS, uintptr(t.ClearTID))
	if t.RobustLen != 0 {
		b.Call(unix.SYS_SET_ROBUST_LIST, uintptr(t.RobustList), uintptr(t.RobustLen))
	}
	if t.Rseq.Address != 0 {
		b.Call(unix.SYS_RSEQ, uintptr(t.Rseq.Address), uintptr(t.Rseq.Bytes), 0, uintptr(t.Rseq.Signature))
	}
	if t.Dispatch.Mode != 0 {
		const prSetSyscallUserDispatch = 59
		b.Call(unix.SYS_PRCTL, prSetSyscallUserDispatch, uintptr(t.Dispatch.Mode), uintptr(t.Dispatch.Offset), uintptr(t.Dispatch.Len), uintptr(t.Dispatch.Selector))
	}
	return b.RunAll(r.Ctx)
}
