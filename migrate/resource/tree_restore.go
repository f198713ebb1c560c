package resource

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/parasite"
	"github.com/pagurus-project/pagurus/tcprepair"
)

// A TreeRestore is the rebuilding of a tree whose memory is in its place
// already. It holds what the shells are given until they have it; Close lets go
// of that and harms nothing in the shells.
type TreeRestore struct {
	Image   *image.Image
	arrival *Arrival
	objects []*os.File // by their place in the image; not ours to close

	// Descriptors of this process, by their place in the image.
	files     map[image.Index]int
	pipes     map[image.Index][2]int
	pipesUsed map[pipeUse]bool // ends of which a description was given out
	sockets   map[image.Index]int
	lostPeers map[image.Index]int // other ends that nobody holds, of sockets whose queue is not filled yet

	restorer    *tcprepair.Restorer
	connections map[*image.File]int // that nobody has asked for yet; nil: not made

	waiting map[int]bool // threads whose call the kernel can restart by itself
}

// NewTreeRestore starts with nothing rebuilt. The arrival is the image's, and knows more
// afterwards. The objects are open files of those of the image, in its order.
func NewTreeRestore(m *image.Image, a *Arrival, objects []*os.File) *TreeRestore {
	return &TreeRestore{
		Image: m, arrival: a, objects: objects,
		files: make(map[image.Index]int), pipes: make(map[image.Index][2]int), pipesUsed: make(map[pipeUse]bool),
		sockets: make(map[image.Index]int), lostPeers: make(map[image.Index]int),
		waiting: make(map[int]bool),
	}
}

// Close closes all descriptors that were made here.
func (r *TreeRestore) Close() error {
	var errs []error
	for _, byPlace := range []map[image.Index]int{r.files, r.sockets, r.lostPeers} {
		for _, fd := range byPlace {
			errs = append(errs, unix.Close(fd))
		}
		clear(byPlace)
	}
	for _, fd := range r.connections {
		errs = append(errs, unix.Close(fd))
	}
	clear(r.connections)
	for _, ends := range r.pipes {
		errs = append(errs, unix.Close(ends[0]), unix.Close(ends[1]))
	}
	clear(r.pipes)
	return errors.Join(errs...)
}

// Process rebuilds one process in its shell, which is stopped and has all
// threads of the process, with all signals blocked. When it returns, what is
// left is to detach (parasite.Process.Finish).
func (r *TreeRestore) Process(ctx context.Context, index int, shell *parasite.Process) error {
	p := &ProcessRestore{TreeRestore: r, Ctx: ctx, Shell: shell, Process: &r.Image.Processes[index]}
	return shell.Tracer().Do(func() error {
		if err := p.run(); err != nil {
			return err
		}
		return p.finish()
	})
}

// passed is how many nanoseconds have gone by for the process since its clocks
// were read at the source.
func (r *ProcessRestore) passed() (int64, error) {
	now, err := ClocksOf(r.Process.PID)
	if err != nil {
		return 0, err
	}
	return max(now.Monotonic-r.Image.Clocks.Monotonic, 0), nil
}

// finish does what has to come after all kinds, and gives the threads the
// registers that they go on with.
func (r *ProcessRestore) finish() error {
	if err := r.changeRoot(); err != nil {
		return fmt.Errorf("changing the root of process %d: %w", r.Process.PID, err)
	}
	passed, err := r.passed()
	if err != nil {
		return err
	}
	if err := r.armTimers(passed); err != nil {
		return fmt.Errorf("setting the timers of process %d: %w", r.Process.PID, err)
	}
	if err := r.resumeWaits(passed); err != nil {
		return fmt.Errorf("resuming what process %d waits in: %w", r.Process.PID, err)
	}
	if err := r.settleTraps(); err != nil {
		return err
	}
	if err := r.enterStrict(); err != nil {
		return fmt.Errorf("entering strict mode: %w", err)
	}
	if r.Process.JobStopped {
		if err := unix.Kill(r.Process.PID, unix.SIGSTOP); err != nil {
			return err
		}
	}
	return nil
}

// PutThreads gives all threads of a shell their vector state, registers and
// signal masks. Nothing can be called in it after that.
func (r *TreeRestore) PutThreads(index int, shell *parasite.Process) error {
	p := &r.Image.Processes[index]
	return shell.Tracer().Do(func() error {
		for i := range p.Threads {
			if err := r.putThread(&p.Threads[i], shell.Thread(p.Threads[i].TID)); err != nil {
				return fmt.Errorf("thread %d: %w", p.Threads[i].TID, err)
			}
		}
		return nil
	})
}

func (r *TreeRestore) putThread(t *image.Thread, thread *parasite.Thread) error {
	own, err := thread.XState()
	if err != nil {
		return err
	}
	if len(t.XState) > len(own) {
		return fmt.Errorf("vector state of %d bytes, this processor has %d", len(t.XState), len(own))
	}
	// The format is the standard one, in which every component has its place:
	// what this processor has more stays in its initial state.
	clear(own[copy(own, t.XState):])
	if err := thread.SetXState(own); err != nil {
		return err
	}
	regs, err := registersOf(t.Registers)
	if err != nil {
		return err
	}
	if t.Call != nil && t.Call.Restart == int(parasite.RestartRemainder) && !r.waiting[t.TID] {
		// What the kernel at the source remembered of the call is gone: it is made
		// once more from its beginning.
		regs.Rax = ^uint64(parasite.RestartNoHand) + 1
	}
	if err := thread.SetRegisters(regs); err != nil {
		return err
	}
	return thread.SetSignalMask(t.SignalMask)
}
