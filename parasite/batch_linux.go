package parasite

import (
	"context"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A Batch is a number of system calls that one thread makes in a row, with the
// memory that their arguments point to. Errors of the calls do not end it.
//
//	b := thread.Batch()
//	out := b.Space(8)
//	get := b.Call(unix.SYS_PRLIMIT64, 0, unix.RLIMIT_NOFILE, 0, out)
//	if err := b.Run(ctx); err != nil { ... }
//	if _, err := b.Result(get); err != nil { ... }
//	limit := b.Read(out, 16)
//
// A batch is used by one goroutine and run once.
type Batch struct {
	thread *Thread
	base   uintptr // of the arena, in the target
	arena  []byte
	calls  []Call
	err    error
}

// ErrBatchFull says that the calls and their memory exceed the scratch memory.
var ErrBatchFull = errors.New("batch is too large")

// Batch starts a batch. For a seized process this maps scratch memory, once.
func (t *Thread) Batch(ctx context.Context) *Batch {
	b := &Batch{thread: t}
	b.err = t.process.tracer.Do(func() error { return t.needScratch(ctx) })
	b.base = t.process.scratch.Data
	return b
}

// Bytes places content in the target, aligned to eight bytes, and returns its
// address there.
func (b *Batch) Bytes(content []byte) uintptr {
	addr := b.Space(len(content))
	copy(b.arena[addr-b.base:], content)
	return addr
}

// String places s with a terminating zero.
func (b *Batch) String(s string) uintptr {
	return b.Bytes(append([]byte(s), 0))
}

// Space reserves n zero bytes for a result.
func (b *Batch) Space(n int) uintptr {
	addr := b.base + uintptr(len(b.arena))
	b.arena = append(b.arena, make([]byte, (n+7)&^7)...)
	return addr
}

// Call adds a system call and returns its place in the batch.
func (b *Batch) Call(nr uintptr, args ...uintptr) int {
	call := Call{Nr: nr}
	copy(call.Args[:], args)
	b.calls = append(b.calls, call)
	return len(b.calls) - 1
}

// Len is how many calls the batch has so far.
func (b *Batch) Len() int { return len(b.calls) }

// Room reports how many bytes are left for calls and memory.
func (b *Batch) Room() int {
	return scratchBytes - len(b.arena) - len(b.calls)*int(callSize) - endWord
}

// Run makes the calls. Its error says that they could not be made; what they
// returned is told by Result.
func (b *Batch) Run(ctx context.Context) error {
	if b.err != nil || len(b.calls) == 0 {
		return b.err
	}
	if b.Room() < 0 {
		return fmt.Errorf("%d calls with %d bytes: %w", len(b.calls), len(b.arena), ErrBatchFull)
	}
	return b.thread.process.tracer.Do(func() error {
		return b.thread.runBatch(ctx, b.calls, b.arena)
	})
}

// RunAll makes the calls, every one of which must succeed.
func (b *Batch) RunAll(ctx context.Context) error {
	if err := b.Run(ctx); err != nil {
		return err
	}
	return b.Err()
}

// Result is what a call returned.
func (b *Batch) Result(call int) (uintptr, error) {
	return b.calls[call].Result, b.calls[call].Err()
}

// Err is the first error that a call of the batch returned, with its place.
func (b *Batch) Err() error {
	for i := range b.calls {
		if err := b.calls[i].Err(); err != nil {
			return &CallError{Index: i, Nr: b.calls[i].Nr, Err: err}
		}
	}
	return nil
}

// A CallError is the failure of one call of a batch.
type CallError struct {
	Index int
	Nr    uintptr
	Err   error
}

func (e *CallError) Error() string {
	return fmt.Sprintf("remote call %d (system call %d): %v", e.Index, e.Nr, e.Err)
}

func (e *CallError) Unwrap() error { return e.Err }

// Read is the memory at an address from Bytes or Space, after Run.
func (b *Batch) Read(addr uintptr, n int) []byte {
	return b.arena[addr-b.base:][:n]
}

// Into copies the memory at addr into v, after Run.
func Into[T any](b *Batch, addr uintptr, v *T) {
	copy(bytesOf(v), b.arena[addr-b.base:])
}

// Struct places a plain struct without pointers.
func Struct[T any](b *Batch, v *T) uintptr { return b.Bytes(bytesOf(v)) }

// runBatch writes arena and calls to the scratch memory, has the calls made
// and reads back what they left in the arena.
func (t *Thread) runBatch(ctx context.Context, calls []Call, arena []byte) error {
	p := t.process
	content := make([]byte, len(arena)+len(calls)*int(callSize))
	copy(content, arena)
	array := content[len(arena):]
	for i := range calls {
		copy(array[i*int(callSize):], bytesOf(&callABI{nr: calls[i].Nr, args: calls[i].Args}))
	}
	if err := p.WriteMemory(p.scratch.Data, content); err != nil {
		return err
	}
	e := execution{code: p.scratch.Code, calls: p.scratch.Data + uintptr(len(arena)), store: true}
	// A call whose end the tracer sees has its result from there.
	run, seen := t.runToBreakpoint, false
	if !p.launched {
		seen = !p.seesTracer || t.filtered()
		run = t.followRestoring
		if !seen {
			e.tracer = p.tracer.tid
		}
	}
	if err := run(ctx, e, calls); err != nil {
		return err
	}
	if err := p.ReadMemory(p.scratch.Data, content); err != nil {
		return err
	}
	copy(arena, content)
	if seen {
		return nil
	}
	for i := range calls {
		calls[i].Result = *(*uintptr)(unsafe.Pointer(&array[i*int(callSize)+int(unsafe.Offsetof(callABI{}.result))]))
	}
	return nil
}

// followRestoring runs a batch in a process that must survive our death.
func (t *Thread) followRestoring(ctx context.Context, e execution, calls []Call) error {
	mask, err := t.SignalMask()
	if err != nil {
		return err
	}
	back := t.beforeCall()
	slots := slotsFor(&back, mask)
	e.mask = mask
	e.slots = e.code + uintptr(len(executorCode()))
	if err := t.process.WriteMemory(e.slots, bytesOf(&slots)); err != nil {
		return err
	}
	if e.tracer == 0 {
		return t.follow(ctx, e, calls)
	}
	return t.followToEnd(ctx, e, calls)
}

// runToBreakpoint runs a batch in a launched process, whose registers hold
// nothing of value.
func (t *Thread) runToBreakpoint(ctx context.Context, e execution, calls []Call) error {
	regs := e.enter(t.regs, len(calls))
	if err := t.writeRegisters(&regs); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if err := t.advance(ctx, unix.PTRACE_CONT, stop.trap); err != nil {
		return err
	}
	var now Thread
	now.process, now.tid = t.process, t.tid
	if err := now.readRegisters(); err != nil {
		return err
	}
	if want := uint64(e.code + breakpointOffset()); now.regs.Rip != want {
		return fmt.Errorf("thread %d of launched process %d stopped at %#x instead of %#x", t.tid, t.process.pid, now.regs.Rip, want)
	}
	return nil
}

var pageSize = uintptr(os.Getpagesize())
