package target

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate/freezer"
	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/migrate/procfs"
	"github.com/pagurus-project/pagurus/migrate/resource"
	"github.com/pagurus-project/pagurus/parasite"
	"github.com/pagurus-project/pagurus/tcprepair/acceptqueue"
)

// A Shell is an empty, stopped process tree that a process moves into.
type Shell struct {
	host   *Host
	config Config
	plan   Plan
	group  freezer.Group
	gone   bool // nothing is left of it, and it never ran unless the plan says otherwise

	// Until it is prepared.
	tracer    *parasite.Tracer
	processes []*process
	memory    *memory
	objects   []*os.File
	known     []image.Object // of objects
	checked   map[checkedFile]bool

	arrival resource.Arrival         // what is done at Commit
	filler  *acceptqueue.Filler      // nil: nothing waits in the source's listeners
	queues  chan *image.AcceptQueues // takes what does

	conn    net.Conn
	signals sync.WaitGroup // the goroutine that takes forwarded signals

	stateReceived time.Time
	preparedAt    time.Time
	ran           chan struct{} // closed by Commit
}

// A process is one process of the shell.
type process struct {
	*parasite.Process
	space    uint32
	mappings []image.Mapping // what stands in it now, the kernel's own left out
}

func (s *Shell) save() error { return s.config.Save(s.plan) }

// make makes all processes with all threads of the inventory.
func (s *Shell) make(ctx context.Context, h *Host) error {
	s.ran, s.queues = make(chan struct{}), make(chan *image.AcceptQueues)
	s.tracer = parasite.NewTracer()
	s.memory = newMemory()
	inventory := s.config.Inventory
	if len(inventory.Processes) != 1 {
		return fmt.Errorf("a tree of %d processes: %w", len(inventory.Processes), errors.ErrUnsupported)
	}
	for i := range inventory.Processes {
		from := &inventory.Processes[i]
		p, err := s.makeProcess(ctx, from)
		if err != nil {
			return fmt.Errorf("making the shell of process %d: %w", from.PID, err)
		}
		s.processes = append(s.processes, p)
		if err := h.enter(s.group, p.PID()); err != nil {
			return err
		}
		if err := p.furnish(ctx, from); err != nil {
			return fmt.Errorf("making the shell of process %d: %w", from.PID, err)
		}
	}
	return nil
}

// makeProcess makes an empty process with the right id, in a time namespace
// that continues the clocks. A process cannot choose the clocks that it lives
// with, only those of its children: so another one goes before it.
func (s *Shell) makeProcess(ctx context.Context, from *image.Process) (*process, error) {
	first, err := s.tracer.Launch(ctx)
	if err != nil {
		return nil, err
	}
	if err := setClocks(ctx, first, s.clocks()); err != nil {
		return nil, errors.Join(err, first.Kill())
	}
	shell, err := first.CloneProcess(ctx, parasite.CloneArgs{TID: from.PID, ExitSignal: unix.SIGCHLD})
	if err != nil {
		err = pidTaken(err, from.PID, from.PID)
	}
	if err = errors.Join(err, first.Kill()); err != nil {
		return nil, err
	}
	return &process{Process: shell, space: from.Memory.Space}, nil
}

// clocks are what the source's should be by now. How long the inventory was on
// its way only the hosts' real-time clocks could tell, which may disagree by any
// time: they are believed within what a network takes. What is too little, is
// waited for when the state arrives (awaitClocks).
func (s *Shell) clocks() image.Clocks {
	const longestWay = 250 * time.Millisecond
	c := s.config.Inventory.Clocks
	known := time.Since(s.config.InventoryRead)
	elapsed := min(max(time.Duration(time.Now().UnixNano()-c.Realtime), known), known+longestWay)
	c.Monotonic += int64(elapsed)
	c.Boottime += int64(elapsed)
	return c
}

// setClocks makes the children of a process live in a time namespace that goes
// on from the given clocks (time_namespaces(7)).
func setClocks(ctx context.Context, p *parasite.Process, then image.Clocks) error {
	if _, err := p.Thread(p.PID()).Syscall(ctx, unix.SYS_UNSHARE, unix.CLONE_NEWTIME); err != nil {
		return fmt.Errorf("making a time namespace: %w", err)
	}
	offsets, err := resource.OffsetsFor(then)
	if err != nil {
		return err
	}
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/timens_offsets", p.PID()), []byte(offsets), 0); err != nil {
		return fmt.Errorf("setting clocks to %q: %w", offsets, err)
	}
	return nil
}

// furnish gives an empty process its threads, and the kernel's own mappings
// their places; everything else that it was launched with goes away.
func (p *process) furnish(ctx context.Context, from *image.Process) error {
	if err := p.clearOut(ctx, from.Memory.Mappings); err != nil {
		return err
	}
	if err := p.moveKernelMappings(ctx, from.Memory.Mappings); err != nil {
		return err
	}
	var tids []int
	for _, t := range from.Threads {
		tids = append(tids, t.TID)
	}
	return p.setThreads(ctx, tids)
}

// clearOut unmaps what the process was launched with.
func (p *process) clearOut(ctx context.Context, wanted []image.Mapping) error {
	if err := p.moveScratchAway(ctx, wanted); err != nil {
		return err
	}
	vmas, err := procfs.Process{PID: p.PID()}.Maps()
	if err != nil {
		return err
	}
	scratch := uint64(p.Scratch().Code)
	b := p.Thread(p.PID()).Batch(ctx)
	for i := range vmas {
		v := &vmas[i]
		if v.Start >= scratch && v.End <= scratch+parasite.ScratchBytes || v.Name == "[vsyscall]" || resource.IsKernelMapping(v.Name) {
			continue
		}
		b.Call(unix.SYS_MUNMAP, uintptr(v.Start), uintptr(v.End-v.Start))
	}
	return b.RunAll(ctx)
}

// moveKernelMappings moves the vDSO and its data to where the program knows
// them to be.
func (p *process) moveKernelMappings(ctx context.Context, wanted []image.Mapping) error {
	have, err := resource.KernelMappings(p.PID())
	if err != nil {
		return err
	}
	want := slices.DeleteFunc(slices.Clone(wanted), func(m image.Mapping) bool { return m.Backing != image.BackingKernel })
	if len(want) == 0 {
		return errors.New("the program has no vDSO")
	}
	if len(want) != len(have) {
		return fmt.Errorf("the program has %d mappings of the kernel's, a process here has %d", len(want), len(have))
	}
	// By way of a place that is free in both worlds: where they are to go may
	// overlap with where they are.
	between, err := image.Hole(have[len(have)-1].End-have[0].Start, p.occupied(wanted, have))
	if err != nil {
		return err
	}
	b := p.Thread(p.PID()).Batch(ctx)
	const flags = unix.MREMAP_MAYMOVE | unix.MREMAP_FIXED
	for i := range have {
		if have[i].Name != want[i].Name || have[i].Bytes() != want[i].Bytes() {
			return fmt.Errorf("the program has %s of %d bytes where a process here has %s of %d bytes", want[i].Name, want[i].Bytes(), have[i].Name, have[i].Bytes())
		}
		size := uintptr(have[i].Bytes())
		b.Call(unix.SYS_MREMAP, uintptr(have[i].Start), size, size, flags, uintptr(between+have[i].Start-have[0].Start))
	}
	for i := range want {
		size := uintptr(want[i].Bytes())
		b.Call(unix.SYS_MREMAP, uintptr(between+have[i].Start-have[0].Start), size, size, flags, uintptr(want[i].Start))
	}
	return b.RunAll(ctx)
}

// setThreads makes and ends threads until the process has just these.
func (p *process) setThreads(ctx context.Context, tids []int) error {
	for _, tid := range p.ThreadIDs() {
		if slices.Contains(tids, tid) {
			continue
		}
		if tid == p.PID() {
			return fmt.Errorf("process %d without its leading thread: %w", tid, errors.ErrUnsupported)
		}
		if _, err := p.Thread(tid).Syscall(ctx, unix.SYS_EXIT, 0); !errors.Is(err, parasite.ErrGone) {
			return fmt.Errorf("ending thread %d of the shell: %w", tid, err)
		}
	}
	for _, tid := range tids {
		if p.Thread(tid) != nil {
			continue
		}
		if _, err := p.CloneThread(ctx, tid); err != nil {
			return pidTaken(err, tid, p.PID())
		}
	}
	return nil
}

// moveScratchAway makes sure that the memory through which the shell is driven
// is not where the program wants its own.
func (p *process) moveScratchAway(ctx context.Context, wanted []image.Mapping) error {
	scratch := image.AddressRange{Start: uint64(p.Scratch().Code), End: uint64(p.Scratch().Code) + parasite.ScratchBytes}
	free := true
	for i := range wanted {
		free = free && (wanted[i].End <= scratch.Start || wanted[i].Start >= scratch.End)
	}
	if free && len(p.mappings) > 0 {
		return nil // it was moved before, from where it was launched
	}
	have, err := resource.KernelMappings(p.PID())
	if err != nil {
		return err
	}
	addr, err := image.Hole(parasite.ScratchBytes, p.occupied(wanted, have))
	if err != nil {
		return err
	}
	return p.MoveScratch(ctx, uintptr(addr))
}

// occupied is all that stands in the process or is to stand there, in order.
func (p *process) occupied(wanted, kernels []image.Mapping) []image.AddressRange {
	scratch := uint64(p.Scratch().Code)
	all := []image.AddressRange{{Start: scratch, End: scratch + parasite.ScratchBytes}}
	for _, list := range [][]image.Mapping{wanted, kernels, p.mappings} {
		for i := range list {
			all = append(all, list[i].AddressRange)
		}
	}
	slices.SortFunc(all, func(a, b image.AddressRange) int {
		switch {
		case a.Start < b.Start:
			return -1
		case a.Start > b.Start:
			return 1
		}
		return 0
	})
	return all
}
