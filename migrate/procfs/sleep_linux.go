package procfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"
)

// A SleepReader tells when the sleep of a thread ends by itself. Nothing but
// the timer knows that, and the timer of a system call with a time-out stands on
// the sleeping thread's kernel stack: a struct hrtimer_sleeper
// (include/linux/hrtimer.h), which leads back to the thread, with a function of
// the kernel's that all of them have. Which function that is, is learned from a
// thread of our own; a BPF iterator copies the stacks' ends.
//
// Without BPF (no BTF, no permission, a kernel before 6.1) it knows of no timer.
// A SleepReader may be used from any goroutine.
type SleepReader struct {
	program *ebpf.Program // nil: no BPF
	buffer  *ebpf.Map     // the program's; one reading at a time
	timer   sleeperLayout
	wakeup  uint64 // the function

	mu sync.Mutex
}

// A Sleep is a thread that sleeps in the kernel.
type Sleep struct {
	// Switches is how often the thread has gone to sleep so far
	// (voluntary_ctxt_switches).
	Switches uint64
	// Until is when its time-out ends, if Timed, at the latest; it does not end before
	// NotBefore. Between them is what reading takes.
	Until, NotBefore time.Time
	Timed            bool
}

// NewSleepReader loads the BPF program. The error says why there is none; the
// reader works all the same.
func NewSleepReader() (*SleepReader, error) {
	r := &SleepReader{}
	if err := r.load(); err != nil {
		return &SleepReader{}, errors.Join(fmt.Errorf("loading the iterator over threads: %w", err), r.Close())
	}
	if err := r.learn(); err != nil {
		return &SleepReader{}, errors.Join(fmt.Errorf("trying the iterator over threads: %w", err), r.Close())
	}
	return r, nil
}

// Close unloads the program.
func (r *SleepReader) Close() error {
	var errs []error
	if r.program != nil {
		errs = append(errs, r.program.Close())
	}
	if r.buffer != nil {
		errs = append(errs, r.buffer.Close())
	}
	return errors.Join(errs...)
}

// Sleeps lists the threads of a process that sleep, by their ids in its own PID
// namespace.
func (r *SleepReader) Sleeps(p Process) (map[int]Sleep, error) {
	if r.program == nil {
		return nil, nil
	}
	before := time.Now()
	records, err := r.read(p)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	sleeps := make(map[int]Sleep)
	for i := range records {
		s := Sleep{Switches: records[i].switches}
		for at := range records[i].timers(&r.timer) {
			if at.function == r.wakeup {
				left := time.Duration(at.expires - records[i].now)
				s.Timed, s.Until, s.NotBefore = true, now.Add(left), before.Add(left)
				break
			}
		}
		sleeps[int(records[i].tid)] = s
	}
	return sleeps, nil
}

// learn finds out which function the timers of sleeping threads have: that of
// the only plausible timer on the stack of a thread which sleeps for a time that
// is known.
func (r *SleepReader) learn() error {
	const (
		nap  = 90 * time.Second
		long = nap - 30*time.Second
	)
	ends, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(ends)
	tids, done := make(chan int), make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		tids <- unix.Gettid()
		// EINTR ends it early, and the attempt fails.
		_, _ = unix.Poll([]unix.PollFd{{Fd: int32(ends), Events: unix.POLLIN}}, int(nap/time.Millisecond))
	}()
	defer func() {
		_, _ = unix.Write(ends, []byte{1, 0, 0, 0, 0, 0, 0, 0})
		<-done
	}()
	tid := uint32(<-tids)
	self := Process{PID: unix.Getpid()}
	for deadline := time.Now().Add(2 * time.Second); ; runtime.Gosched() {
		records, err := r.read(self)
		if err != nil {
			return err
		}
		for i := range records {
			if records[i].tid != tid {
				continue
			}
			for at := range records[i].timers(&r.timer) {
				if left := time.Duration(at.expires - records[i].now); left > long && left <= nap {
					r.wakeup = at.function
					return nil
				}
			}
		}
		if time.Now().After(deadline) {
			return errors.New("no timer on the stack of a sleeping thread")
		}
	}
}

// sleeperLayout is where the fields of struct hrtimer_sleeper are.
type sleeperLayout struct {
	expires, function, state, task, bytes int
}

func sleeperLayoutOf(kernel *btf.Spec) (sleeperLayout, error) {
	var sleeper *btf.Struct
	if err := kernel.TypeByName("hrtimer_sleeper", &sleeper); err != nil {
		return sleeperLayout{}, err
	}
	var l sleeperLayout
	for _, f := range []struct {
		of, name string
		to       *int
	}{{"hrtimer", "_softexpires", &l.expires}, {"hrtimer", "function", &l.function}, {"hrtimer", "state", &l.state}, {"hrtimer_sleeper", "task", &l.task}} {
		offset, err := fieldOffset(kernel, f.of, f.name)
		if err != nil {
			return l, err
		}
		*f.to = int(offset)
	}
	if offset, err := fieldOffset(kernel, "hrtimer_sleeper", "timer"); err != nil || offset != 0 {
		return l, errors.New("struct hrtimer_sleeper does not begin with its timer")
	}
	l.bytes = int(sleeper.Size)
	return l, nil
}

// A sleepRecord is what the program writes of one thread.
type sleepRecord struct {
	tid      uint32
	task     uint64 // its address
	switches uint64
	now      int64  // CLOCK_MONOTONIC of the initial time namespace
	stack    []byte // its innermost part
}

// The record as it lies in memory: five numbers and the stack.
const (
	recordTID = 8 * iota
	recordTask
	recordSwitches
	recordNow
	recordLen
	recordStack

	stackPart   = 1536
	recordBytes = recordStack + stackPart
	maxThreads  = 1 << 16
)

// A stackTimer is something on a stack that may be a timer.
type stackTimer struct {
	function uint64
	expires  int64
}

// timers yields what looks like a struct hrtimer_sleeper of the thread that is
// under way. One that is not any more may still be seen where a function has
// not used all of its frame.
func (s *sleepRecord) timers(l *sleeperLayout) func(yield func(stackTimer) bool) {
	return func(yield func(stackTimer) bool) {
		word := func(at int) uint64 { return binary.NativeEndian.Uint64(s.stack[at:]) }
		for at := 0; at+l.bytes <= len(s.stack); at += 8 {
			const enqueued = 1 // HRTIMER_STATE_ENQUEUED
			if word(at+l.task) != s.task || s.stack[at+l.state] != enqueued {
				continue
			}
			if !yield(stackTimer{function: word(at + l.function), expires: int64(word(at + l.expires))}) {
				return
			}
		}
	}
}

func (r *SleepReader) read(p Process) ([]sleepRecord, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	iterator, err := openTaskIterator(r.program.FD(), p.PID)
	if err != nil {
		return nil, fmt.Errorf("iterating over the threads of %d: %w", p.PID, err)
	}
	defer iterator.Close()
	data, err := io.ReadAll(io.LimitReader(iterator, maxThreads*recordBytes))
	if err != nil {
		return nil, fmt.Errorf("iterating over the threads of %d: %w", p.PID, err)
	}
	return sleepRecords(data), nil
}

// sleepRecords are those that the program has written.
func sleepRecords(data []byte) []sleepRecord {
	var all []sleepRecord
	for ; len(data) >= recordBytes; data = data[recordBytes:] {
		word := func(at int) uint64 { return binary.NativeEndian.Uint64(data[at:]) }
		all = append(all, sleepRecord{
			tid: uint32(word(recordTID)), task: word(recordTask), switches: word(recordSwitches), now: int64(word(recordNow)),
			stack: data[recordStack:][:min(word(recordLen), stackPart)],
		})
	}
	return all
}

// load loads the program
//
//	if (!ctx->task || !ctx->task->__state) return 0;
//	pid = task->thread_pid;
//	record = {
//		tid: pid->numbers[pid->level].nr, task, nvcsw, bpf_ktime_get_ns(),
//		len: min(task->stack + THREAD_SIZE - task->thread.sp, stackPart),
//	};
//	bpf_probe_read_kernel(record.stack, record.len, task->thread.sp);
//	bpf_seq_write(ctx->meta->seq, record, sizeof(record));
//
// where the record lies in a map, for want of room on its own stack.
func (r *SleepReader) load() error {
	kernel, err := btf.LoadKernelSpec()
	if err != nil {
		return err
	}
	if r.timer, err = sleeperLayoutOf(kernel); err != nil {
		return err
	}
	instructions, err := r.instructions(kernel)
	if err != nil {
		return err
	}
	r.program, err = ebpf.NewProgram(&ebpf.ProgramSpec{
		Name:         "pagurus_sleeps",
		Type:         ebpf.Tracing,
		AttachType:   ebpf.AttachTraceIter,
		AttachTo:     "task",
		Instructions: instructions,
		License:      "Dual MIT/GPL",
	})
	return err
}

// kernelStackBytes is THREAD_SIZE (arch/x86/include/asm/page_64_types.h).
const kernelStackBytes = 16 << 10

func (r *SleepReader) instructions(kernel *btf.Spec) (asm.Instructions, error) {
	var err error
	if r.buffer, err = ebpf.NewMap(&ebpf.MapSpec{Name: "pagurus_sleeps", Type: ebpf.Array, KeySize: 4, ValueSize: recordBytes, MaxEntries: 1}); err != nil {
		return nil, err
	}
	offset := make(map[string]int16)
	for _, f := range [][2]string{
		{"task_struct", "__state"},
		{"task_struct", "thread_pid"},
		{"task_struct", "nvcsw"},
		{"task_struct", "stack"},
		{"task_struct", "thread"},
		{"thread_struct", "sp"},
		{"pid", "level"},
		{"pid", "numbers"},
		{"upid", "nr"},
	} {
		if offset[f[0]+"."+f[1]], err = fieldOffset(kernel, f[0], f[1]); err != nil {
			return nil, err
		}
	}
	var upid *btf.Struct
	if err := kernel.TypeByName("upid", &upid); err != nil {
		return nil, err
	}
	// probe reads size bytes at R3 into the stack at to.
	probe := func(to int16, size int32) asm.Instructions {
		return asm.Instructions{
			asm.Mov.Reg(asm.R1, asm.RFP),
			asm.Add.Imm(asm.R1, int32(to)),
			asm.Mov.Imm(asm.R2, size),
			asm.FnProbeReadKernel.Call(),
		}
	}
	const level, nr = -8, -16
	all := asm.Instructions{
		// struct bpf_iter__task { meta, task }
		asm.LoadMem(asm.R7, asm.R1, 8, asm.DWord),
		asm.JEq.Imm(asm.R7, 0, "out"),
		asm.LoadMem(asm.R6, asm.R1, 0, asm.DWord),
		asm.LoadMem(asm.R1, asm.R7, offset["task_struct.__state"], asm.Word),
		asm.JEq.Imm(asm.R1, 0, "out"),
		asm.LoadMapValue(asm.R8, r.buffer.FD(), 0),
		// The id.
		asm.Mov.Imm(asm.R1, 0),
		asm.StoreMem(asm.RFP, level, asm.R1, asm.DWord),
		asm.StoreMem(asm.RFP, nr, asm.R1, asm.DWord),
		asm.LoadMem(asm.R9, asm.R7, offset["task_struct.thread_pid"], asm.DWord),
		asm.Mov.Reg(asm.R3, asm.R9),
		asm.Add.Imm(asm.R3, int32(offset["pid.level"])),
	}
	all = append(all, probe(level, 4)...)
	all = append(all,
		asm.LoadMem(asm.R1, asm.RFP, level, asm.Word),
		asm.Mul.Imm(asm.R1, int32(upid.Size)),
		asm.Mov.Reg(asm.R3, asm.R9),
		asm.Add.Reg(asm.R3, asm.R1),
		asm.Add.Imm(asm.R3, int32(offset["pid.numbers"])+int32(offset["upid.nr"])))
	all = append(all, probe(nr, 4)...)
	all = append(all,
		asm.LoadMem(asm.R1, asm.RFP, nr, asm.DWord),
		asm.StoreMem(asm.R8, recordTID, asm.R1, asm.DWord),
		asm.Mov.Reg(asm.R1, asm.R7),
		asm.StoreMem(asm.R8, recordTask, asm.R1, asm.DWord),
		asm.LoadMem(asm.R1, asm.R7, offset["task_struct.nvcsw"], asm.DWord),
		asm.StoreMem(asm.R8, recordSwitches, asm.R1, asm.DWord),
		asm.FnKtimeGetNs.Call(),
		asm.StoreMem(asm.R8, recordNow, asm.R0, asm.DWord),
		// The stack.
		asm.LoadMem(asm.R9, asm.R7, offset["task_struct.thread"]+offset["thread_struct.sp"], asm.DWord),
		asm.LoadMem(asm.R2, asm.R7, offset["task_struct.stack"], asm.DWord),
		// Read again it is a number, which can be calculated with.
		asm.StoreMem(asm.R8, recordLen, asm.R2, asm.DWord),
		asm.LoadMem(asm.R2, asm.R8, recordLen, asm.DWord),
		asm.Add.Imm(asm.R2, kernelStackBytes),
		asm.Sub.Reg(asm.R2, asm.R9),
		asm.JLE.Imm(asm.R2, stackPart, "short"),
		asm.Mov.Imm(asm.R2, stackPart),
		asm.StoreMem(asm.R8, recordLen, asm.R2, asm.DWord).WithSymbol("short"),
		asm.Mov.Reg(asm.R1, asm.R8),
		asm.Add.Imm(asm.R1, recordStack),
		asm.Mov.Reg(asm.R3, asm.R9),
		asm.FnProbeReadKernel.Call(),
		asm.JNE.Imm(asm.R0, 0, "out"),
		asm.LoadMem(asm.R1, asm.R6, 0, asm.DWord), // struct bpf_iter_meta: seq is the first
		asm.Mov.Reg(asm.R2, asm.R8),
		asm.Mov.Imm(asm.R3, recordBytes),
		asm.FnSeqWrite.Call(),
		asm.Mov.Imm(asm.R0, 0).WithSymbol("out"),
		asm.Return())
	return all, nil
}
