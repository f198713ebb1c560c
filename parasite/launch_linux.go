package parasite

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"structs"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Launched processes die with the tracer, until they are let go by Detach:
// nobody must ever find one half built. All that they clone is traced too.
const launchOptions = unix.PTRACE_O_TRACESYSGOOD | unix.PTRACE_O_EXITKILL |
	unix.PTRACE_O_TRACECLONE | unix.PTRACE_O_TRACEFORK | unix.PTRACE_O_TRACEVFORK |
	ptraceOptionSuspendSeccomp

// launchedMask is the signal mask of threads of a launched process, so that
// nothing that is sent to them is delivered while they are built. SIGTRAP, which
// a breakpoint raises, is not in it: the kernel would put its action back to the
// default (force_sig_info_to_task, kernel/signal.c).
const launchedMask = ^uint64(1 << (unix.SIGTRAP - 1))

// launchBase is where the image of a launched process stands: the lowest
// address that may be mapped by default (vm.mmap_min_addr).
const launchBase = 0x10000

// Launch makes an empty process, a child of the caller, stopped and with
// scratch memory: its image is one page. It has no open descriptors.
func (t *Tracer) Launch(ctx context.Context) (*Process, error) {
	var p *Process
	err := t.Do(func() error {
		pid, err := startImage()
		if err != nil {
			return fmt.Errorf("launching an empty process: %w", err)
		}
		p, err = t.takeLaunched(ctx, pid)
		if err != nil {
			err = errors.Join(err, unix.Kill(pid, unix.SIGKILL))
			_, _ = unix.Wait4(pid, nil, unix.WALL, nil)
		}
		return err
	})
	return p, err
}

// takeLaunched seizes a process that startImage has started.
func (t *Tracer) takeLaunched(ctx context.Context, pid int) (*Process, error) {
	if err := ptrace(ptraceSeize, pid, 0, launchOptions); err != nil {
		return nil, err
	}
	if err := ptrace(ptraceInterrupt, pid, 0, 0); err != nil {
		return nil, err
	}
	p, err := t.newLaunched(pid)
	if err != nil {
		return nil, err
	}
	if err := p.awaitStop(ctx, pid); err != nil {
		return nil, errors.Join(err, p.memory.Close())
	}
	t.processes[pid] = p
	return p, errors.Join(p.makeScratch(ctx), p.closeAll(ctx))
}

// closeAll closes what the caller had inherited and passed on.
func (p *Process) closeAll(ctx context.Context) error {
	_, err := p.threads[p.pid].Syscall(ctx, unix.SYS_CLOSE_RANGE, 0, math.MaxUint32, 0)
	if err != nil {
		return fmt.Errorf("closing inherited descriptors: %w", err)
	}
	return nil
}

func (t *Tracer) newLaunched(pid int) (*Process, error) {
	memory, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	return &Process{tracer: t, pid: pid, launched: true, threads: make(map[int]*Thread), memory: memory}, nil
}

// makeScratch maps the scratch memory of a fresh image, whose own page holds
// the executor and, behind it, the calls to be made first.
func (p *Process) makeScratch(ctx context.Context) error {
	t := p.threads[p.pid]
	p.scratch = Scratch{Code: launchBase + imageHeaderBytes, Data: launchBase + imageHeaderBytes + 1024}
	return p.moveScratch(ctx, t, launchBase+pageSize)
}

// MoveScratch moves the scratch memory of a launched process to addr, which
// must be free there for [ScratchBytes] bytes.
func (p *Process) MoveScratch(ctx context.Context, addr uintptr) error {
	return p.tracer.Do(func() error {
		old := p.scratch
		t := p.threads[p.pid]
		if err := p.moveScratch(ctx, t, addr); err != nil {
			return err
		}
		calls := []Call{unmap(old.Code, pageSize), unmap(old.Data, scratchBytes)}
		if err := t.runBatch(ctx, calls, nil); err != nil {
			return err
		}
		return errors.Join(calls[0].Err(), calls[1].Err())
	})
}

// ScratchBytes is how much address space the scratch memory takes.
const ScratchBytes = scratchBytes + 4096

func (p *Process) moveScratch(ctx context.Context, t *Thread, addr uintptr) error {
	const flags = unix.MAP_PRIVATE | unix.MAP_ANONYMOUS | unix.MAP_FIXED_NOREPLACE
	nowhere := ^uintptr(0)
	calls := []Call{
		{Nr: unix.SYS_MMAP, Args: [6]uintptr{addr, pageSize, unix.PROT_READ | unix.PROT_EXEC, flags, nowhere, 0}},
		{Nr: unix.SYS_MMAP, Args: [6]uintptr{addr + pageSize, scratchBytes, unix.PROT_READ | unix.PROT_WRITE, flags, nowhere, 0}},
	}
	// Not runBatch: the image's page cannot be written by the process.
	if err := t.runReadOnly(ctx, calls); err != nil {
		return err
	}
	if err := errors.Join(calls[0].Err(), calls[1].Err()); err != nil {
		return fmt.Errorf("mapping scratch memory at %#x: %w", addr, err)
	}
	p.scratch = Scratch{Code: addr, Data: addr + pageSize}
	return p.WriteMemory(p.scratch.Code, executorCode())
}

// runReadOnly makes calls one by one, taking the results from the registers.
func (t *Thread) runReadOnly(ctx context.Context, calls []Call) error {
	p := t.process
	for i := range calls {
		entry := callABI{nr: calls[i].Nr, args: calls[i].Args}
		if err := p.WriteMemory(p.scratch.Data, bytesOf(&entry)); err != nil {
			return err
		}
		if err := t.runToBreakpoint(ctx, execution{code: p.scratch.Code, calls: p.scratch.Data}, calls[i:i+1]); err != nil {
			return err
		}
		now := Thread{process: p, tid: t.tid}
		if err := now.readRegisters(); err != nil {
			return err
		}
		calls[i].Result = syscallResult(&now.regs)
	}
	return nil
}

// CloneArgs says what a launched process clones (clone3(2)).
type CloneArgs struct {
	Flags uint64
	// TID is the id that the child must get, in the PID namespace of its
	// parent; 0 leaves the choice to the kernel. EEXIST if it is taken.
	TID        int
	ExitSignal unix.Signal
}

// cloneABI is struct clone_args (include/uapi/linux/sched.h), version 2.
type cloneABI struct {
	_          structs.HostLayout
	flags      uint64
	pidfd      uint64
	childTID   uint64
	parentTID  uint64
	exitSignal uint64
	stack      uint64
	stackSize  uint64
	tls        uint64
	setTID     uint64
	setTIDSize uint64
	cgroup     uint64
}

// CloneThread makes another thread in a launched process, stopped.
func (p *Process) CloneThread(ctx context.Context, tid int) (*Thread, error) {
	const flags = unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND |
		unix.CLONE_THREAD | unix.CLONE_SYSVSEM
	var thread *Thread
	err := p.tracer.Do(func() error {
		child, err := p.clone(ctx, CloneArgs{Flags: flags, TID: tid})
		if err != nil {
			return fmt.Errorf("making thread %d of process %d: %w", tid, p.pid, err)
		}
		if err := p.awaitStop(ctx, child); err != nil {
			return err
		}
		thread = p.threads[child]
		return nil
	})
	return thread, err
}

// CloneProcess makes a copy of a launched process, stopped, that is traced by
// the same tracer and just as launched.
func (p *Process) CloneProcess(ctx context.Context, args CloneArgs) (*Process, error) {
	var copied *Process
	err := p.tracer.Do(func() error {
		child, err := p.clone(ctx, args)
		if err != nil {
			return fmt.Errorf("making process %d: %w", args.TID, err)
		}
		copied, err = p.tracer.newLaunched(child)
		if err != nil {
			return errors.Join(err, unix.Kill(child, unix.SIGKILL))
		}
		copied.scratch = p.scratch
		if err := copied.awaitStop(ctx, child); err != nil {
			return errors.Join(err, copied.memory.Close())
		}
		p.tracer.processes[child] = copied
		return nil
	})
	return copied, err
}

// clone has the leader call clone3 and returns the child's id, which the
// kernel has already made a tracee of this thread.
func (p *Process) clone(ctx context.Context, args CloneArgs) (int, error) {
	t := p.threads[p.pid]
	b := t.Batch(ctx)
	abi := cloneABI{flags: args.Flags, exitSignal: uint64(args.ExitSignal)}
	if args.TID != 0 {
		tid := uint64(args.TID)
		abi.setTID = uint64(Struct(b, &tid))
		abi.setTIDSize = 1
	}
	clone3 := b.Call(unix.SYS_CLONE3, Struct(b, &abi), unsafe.Sizeof(abi))
	if err := b.Run(ctx); err != nil {
		return 0, err
	}
	child, err := b.Result(clone3)
	return int(child), err
}

// imageHeaderBytes are an Elf64_Ehdr and one Elf64_Phdr (elf(5)).
const imageHeaderBytes = 64 + 56

// image is an ELF executable of one page that waits for ever: the executor at
// its start is never entered there before a tracer says so.
func image() []byte {
	code := executorCode()
	// for { pause() }: mov $SYS_pause,%eax; syscall; jmp to the start.
	idle := []byte{0xb8, unix.SYS_PAUSE, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7}
	entry := imageHeaderBytes + len(code)
	size := uint64(pageSize)

	le := binary.LittleEndian
	h := make([]byte, size)
	copy(h, "\x7fELF\x02\x01\x01") // 64 bit, little endian, version 1
	le.PutUint16(h[16:], 2)        // ET_EXEC
	le.PutUint16(h[18:], 62)       // EM_X86_64
	le.PutUint32(h[20:], 1)
	le.PutUint64(h[24:], launchBase+uint64(entry))
	le.PutUint64(h[32:], 64) // program headers
	le.PutUint16(h[52:], 64) // size of this header
	le.PutUint16(h[54:], 56) // of a program header
	le.PutUint16(h[56:], 1)  // one of them

	ph := h[64:]
	le.PutUint32(ph[0:], 1) // PT_LOAD
	le.PutUint32(ph[4:], 5) // readable and executable
	le.PutUint64(ph[16:], launchBase)
	le.PutUint64(ph[24:], launchBase)
	le.PutUint64(ph[32:], size)
	le.PutUint64(ph[40:], size)
	le.PutUint64(ph[48:], size)

	copy(h[imageHeaderBytes:], code)
	copy(h[entry:], idle)
	return h
}

// startImage starts the image as a child in a session of its own, without
// descriptors. Until it is seized, the end of this thread, the tracer's, kills it.
func startImage() (int, error) {
	fd, err := unix.MemfdCreate("pagurus-shell", unix.MFD_CLOEXEC)
	if err != nil {
		return 0, err
	}
	file := os.NewFile(uintptr(fd), "shell image")
	defer file.Close()
	if _, err := file.Write(image()); err != nil {
		return 0, err
	}
	return syscall.ForkExec(fmt.Sprintf("/proc/self/fd/%d", fd), []string{"pagurus-shell"}, &syscall.ProcAttr{
		Env: []string{},
		Sys: &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL},
	})
}
