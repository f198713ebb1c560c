package parasite

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Scratch is the memory of ours in a target: one page of code, and data for
// the arguments and results of batches.
type Scratch struct {
	Code uintptr // one page, readable and executable
	Data uintptr // scratchBytes, readable and writable
}

const scratchBytes = 256 << 10

func (s Scratch) mapped() bool { return s.Data != 0 }

// Scratch is where the memory of ours is; zero if there is none.
func (p *Process) Scratch() Scratch { return p.scratch }

// needScratch maps memory in a seized process. Code and data are two mappings
// because a process may have forbidden itself memory that is both writable and
// executable (PR_SET_MDWE).
func (t *Thread) needScratch(ctx context.Context) error {
	p := t.process
	if p.scratch.mapped() {
		return nil
	}
	if p.launched {
		return fmt.Errorf("process %d has no scratch memory", p.pid)
	}
	return t.mapScratch(ctx, Scratch{}, 0)
}

// ScratchAt is scratch memory of [ScratchBytes] bytes at one place.
func ScratchAt(addr uintptr) Scratch { return Scratch{Code: addr, Data: addr + pageSize} }

// MapScratch maps the memory of ours in a seized process at a place that is
// free, and so can be known before. Without it, the first batch of a process
// maps memory wherever the kernel likes.
func (t *Thread) MapScratch(ctx context.Context, at Scratch) error {
	return t.process.tracer.Do(func() error { return t.mapScratch(ctx, at, unix.MAP_FIXED_NOREPLACE) })
}

func (t *Thread) mapScratch(ctx context.Context, at Scratch, fixed uintptr) error {
	p := t.process
	anonymous := unix.MAP_PRIVATE | unix.MAP_ANONYMOUS | fixed
	nowhere := ^uintptr(0)
	calls := []Call{
		{Nr: unix.SYS_MMAP, Args: [6]uintptr{at.Code, pageSize, unix.PROT_READ | unix.PROT_EXEC, anonymous, nowhere, 0}},
		{Nr: unix.SYS_MMAP, Args: [6]uintptr{at.Data, scratchBytes, unix.PROT_READ | unix.PROT_WRITE, anonymous, nowhere, 0}},
	}
	if err := t.callInRoom(ctx, calls); err != nil {
		return err
	}
	codeErr, dataErr := calls[0].Err(), calls[1].Err()
	if codeErr == nil && dataErr == nil {
		p.scratch = Scratch{Code: calls[0].Result, Data: calls[1].Result}
		err := p.WriteMemory(p.scratch.Code, executorCode())
		return err
	}
	var undo []Call
	if codeErr == nil {
		undo = append(undo, unmap(calls[0].Result, pageSize))
	}
	if dataErr == nil {
		undo = append(undo, unmap(calls[1].Result, scratchBytes))
	}
	err := fmt.Errorf("mapping scratch memory: %w", errors.Join(codeErr, dataErr))
	if len(undo) > 0 {
		err = errors.Join(err, t.callInRoom(ctx, undo))
	}
	return err
}

func unmap(addr, size uintptr) Call {
	return Call{Nr: unix.SYS_MUNMAP, Args: [6]uintptr{addr, size}}
}

// ReleaseScratch unmaps the memory of ours. Detach does it by itself.
func (p *Process) ReleaseScratch(ctx context.Context) error {
	return p.tracer.Do(func() error { return p.dropScratch(ctx) })
}

func (p *Process) dropScratch(ctx context.Context) error {
	if !p.scratch.mapped() {
		return nil
	}
	for _, t := range p.threads {
		calls := []Call{unmap(p.scratch.Code, pageSize), unmap(p.scratch.Data, scratchBytes)}
		if err := t.callInRoom(ctx, calls); err != nil {
			return fmt.Errorf("unmapping scratch memory: %w", err)
		}
		p.scratch = Scratch{}
		return errors.Join(calls[0].Err(), calls[1].Err())
	}
	return fmt.Errorf("unmapping scratch memory: %w", ErrGone)
}
