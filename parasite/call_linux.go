package parasite

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"structs"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A Call is one system call to be made in a target.
type Call struct {
	Nr     uintptr
	Args   [6]uintptr
	Result uintptr
}

// Err is the error that the call returned, or nil.
func (c *Call) Err() error {
	if errno := failed(c.Result); errno != 0 {
		return errno
	}
	return nil
}

// callABI is one entry of the executor's array (executor_amd64.s).
type callABI struct {
	_      structs.HostLayout
	nr     uintptr
	args   [6]uintptr
	result uintptr
}

const callSize = unsafe.Sizeof(callABI{})

// callContext is a context that lives inside one request to the tracer.
type callContext = context.Context

// Remote calls of which none should block.
const callTimeout = 10 * time.Second

// An execution is an executor that stands ready in the target.
type execution struct {
	code, slots, calls uintptr
	mask               uint64 // the thread's own
	store              bool   // the calls' array can be written by the target
	tracer             int    // the thread whose end the target notices; 0: it need not
}

// follow lets the thread run an executor and makes sure that it ends where it
// began. The order of the steps is such that the tracer may die between any
// two of them: up to writeRegisters nothing has changed; from there on the
// executor runs to its end and restores everything; when the registers are
// written back, the interrupt that is pending makes the kernel look at
// interrupted system calls once more before the thread leaves it.
func (t *Thread) follow(ctx callContext, e execution, calls []Call) error {
	if !t.Runs64Bit() {
		return fmt.Errorf("thread %d: %w", t.tid, ErrCompat)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	regs := e.enter(t.regs, len(calls))
	if err := t.writeRegisters(&regs); err != nil {
		return err
	}
	err := t.SetSignalMask(^uint64(0))
	for i := 0; i < len(calls) && err == nil; i++ {
		err = t.followCall(ctx, &calls[i])
	}
	if errors.Is(err, ErrGone) {
		return err
	}
	return errors.Join(err, t.comeBack(e.mask))
}

// endWord is how many bytes behind the array the executor writes to when all
// calls are made.
const endWord = 8

// followToEnd is follow without a stop for each call: the executor waits for us
// when it is done, and goes on by itself only if we die.
func (t *Thread) followToEnd(ctx callContext, e execution, calls []Call) error {
	if !t.Runs64Bit() {
		return fmt.Errorf("thread %d: %w", t.tid, ErrCompat)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	end := e.calls + uintptr(len(calls))*callSize
	if err := t.process.WriteMemory(end, make([]byte, endWord)); err != nil {
		return err
	}
	regs := e.enter(t.regs, len(calls))
	if err := t.writeRegisters(&regs); err != nil {
		return err
	}
	err := t.SetSignalMask(^uint64(0))
	if err == nil {
		err = t.runUntilWritten(ctx, end)
	}
	if errors.Is(err, ErrGone) {
		return err
	}
	return errors.Join(err, t.putBack(e))
}

// runUntilWritten lets the thread run until it has written to the word at addr.
func (t *Thread) runUntilWritten(ctx callContext, addr uintptr) error {
	if err := ptrace(unix.PTRACE_CONT, t.tid, 0, 0); err != nil {
		return err
	}
	word := make([]byte, endWord)
	err := poll(ctx, func() (bool, error) {
		s, stopped, err := stopOf(t.tid)
		if err != nil {
			return false, err
		}
		if stopped {
			signal, wrong := t.toPassOn(s)
			if wrong != nil { // a fault is not repeated: the interrupt comes first
				wrong = errors.Join(wrong, ptrace(ptraceInterrupt, t.tid, 0, 0))
			}
			if err := errors.Join(wrong, ptrace(unix.PTRACE_CONT, t.tid, 0, uintptr(signal))); err != nil {
				return false, err
			}
		}
		if err := t.process.ReadMemory(addr, word); err != nil {
			return false, err
		}
		return binary.NativeEndian.Uint64(word) != 0, nil
	})
	if err != nil {
		return fmt.Errorf("remote calls in thread %d: %w", t.tid, err)
	}
	return nil
}

// putBack makes a thread that is in the executor stand where it stood before, in
// a stop from which the kernel itself restarts what was interrupted.
func (t *Thread) putBack(e execution) error {
	if err := t.regain(); err != nil {
		return err
	}
	now := Thread{process: t.process, tid: t.tid}
	if err := now.readRegisters(); err != nil {
		return err
	}
	if at := uintptr(now.regs.Rip) - e.code; at > uintptr(len(executorCode())) {
		t.regs = now.regs
		return errors.Join(fmt.Errorf("thread %d did not wait for its tracer", t.tid), t.noteInterrupted())
	}
	if err := t.SetSignalMask(e.mask); err != nil {
		return err
	}
	return t.writeRegisters(&t.regs)
}

// followCall lets the thread run until it has made one system call.
func (t *Thread) followCall(ctx callContext, call *Call) error {
	for range 2 { // its entry, its exit
		if err := t.advance(ctx, unix.PTRACE_SYSCALL, stop.syscall); err != nil {
			return err
		}
	}
	var now Thread
	now.process, now.tid = t.process, t.tid
	if err := now.readRegisters(); err != nil {
		return err
	}
	call.Result = syscallResult(&now.regs)
	return nil
}

// comeBack makes the thread stand where it stood before follow, in a stop from
// which the kernel itself restarts what was interrupted.
func (t *Thread) comeBack(mask uint64) error {
	if err := ptrace(ptraceInterrupt, t.tid, 0, 0); err != nil {
		return err
	}
	if err := t.SetSignalMask(mask); err != nil {
		return err
	}
	if err := t.writeRegisters(&t.regs); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	return t.advance(ctx, unix.PTRACE_CONT, func(s stop) bool { return s.event() == ptraceEventStop })
}

// advance lets the thread run until it comes to the kind of stop that is
// wanted. Signals that cannot be blocked are passed on; stops of the whole
// process by SIGSTOP are recorded by the kernel and happen after Detach.
func (t *Thread) advance(ctx callContext, request int, wanted func(stop) bool) error {
	var signal unix.Signal
	for {
		if err := ptrace(request, t.tid, 0, uintptr(signal)); err != nil {
			return err
		}
		s, err := wait(ctx, t.tid)
		if err != nil {
			if ctx.Err() != nil {
				err = errors.Join(err, t.regain())
			}
			return err
		}
		if wanted(s) {
			return nil
		}
		if signal, err = t.toPassOn(s); err != nil {
			return err
		}
	}
}

// toPassOn is the signal to go on with after a stop that was not asked for; 0 if
// the stop is only to be left.
func (t *Thread) toPassOn(s stop) (unix.Signal, error) {
	switch {
	case s.gone():
		delete(t.process.threads, t.tid)
		return 0, fmt.Errorf("thread %d: %v: %w", t.tid, s, ErrGone)
	case synchronous[s.signal()]:
		return 0, fmt.Errorf("remote call in thread %d: %v", t.tid, s)
	}
	return s.signal(), nil
}

// regain stops a thread that runs the executor, wherever it is there.
func (t *Thread) regain() error {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	for {
		// Every stop takes an interrupt that is pending away.
		if err := ptrace(ptraceInterrupt, t.tid, 0, 0); err != nil {
			return err
		}
		s, err := wait(ctx, t.tid)
		if err != nil {
			return err
		}
		if s.event() == ptraceEventStop {
			return nil
		}
		signal, err := t.toPassOn(s)
		if errors.Is(err, ErrGone) {
			return err
		}
		if err != nil {
			signal = 0 // a fault: the interrupt comes before the instruction does again
		}
		if err := ptrace(unix.PTRACE_CONT, t.tid, 0, uintptr(signal)); err != nil {
			return err
		}
	}
}

// Signals that a fault in the executor would raise: they are never blocked.
var synchronous = map[unix.Signal]bool{
	unix.SIGSEGV: true, unix.SIGBUS: true, unix.SIGILL: true, unix.SIGFPE: true, unix.SIGTRAP: true, unix.SIGSYS: true,
}

// Syscall makes one system call whose arguments need no memory of ours. The
// error is the call's own.
func (t *Thread) Syscall(ctx context.Context, nr uintptr, args ...uintptr) (uintptr, error) {
	calls := []Call{{Nr: nr}}
	copy(calls[0].Args[:], args)
	err := t.process.tracer.Do(func() error {
		if t.process.launched {
			return t.runBatch(ctx, calls, nil)
		}
		return t.callInRoom(ctx, calls)
	})
	if err != nil {
		return 0, err
	}
	return calls[0].Result, calls[0].Err()
}

// BeginCall has a thread of a launched process begin a system call that waits,
// and interrupts it before it does. It reports whether the kernel remembers the
// call as one to be restarted ([RestartRemainder]): then registers that say so
// (SetRegisters) make the thread go on waiting after Detach, for what is left of
// the time by then.
func (t *Thread) BeginCall(ctx context.Context, nr int, args [6]uint64) (bool, error) {
	var interrupted bool
	err := t.process.tracer.Do(func() error {
		call := Call{Nr: uintptr(nr)}
		for i := range args {
			call.Args[i] = uintptr(args[i])
		}
		if err := t.enterCall(&call); err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		if err := t.advance(ctx, unix.PTRACE_SYSCALL, stop.syscall); err != nil {
			return err
		}
		if err := t.leaveCall(ctx); err != nil {
			return err
		}
		now := Thread{process: t.process, tid: t.tid}
		if err := now.readRegisters(); err != nil {
			return err
		}
		interrupted = int64(syscallResult(&now.regs)) == -int64(RestartRemainder)
		return nil
	})
	return interrupted, err
}

// PlainSyscall makes one system call in a thread of a launched process without
// the breakpoint that ends a batch. The kernel puts the action of the signal that
// a breakpoint raises back to the default if it is ignored, so what comes after
// SIGTRAP is ignored is called like this.
func (t *Thread) PlainSyscall(ctx context.Context, nr uintptr, args ...uintptr) (uintptr, error) {
	call := Call{Nr: nr}
	copy(call.Args[:], args)
	err := t.process.tracer.Do(func() error { return t.callPlainly(ctx, &call) })
	if err != nil {
		return 0, err
	}
	return call.Result, call.Err()
}

func (t *Thread) callPlainly(ctx context.Context, call *Call) error {
	if err := t.enterCall(call); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if err := t.followCall(ctx, call); err != nil {
		return err
	}
	return t.leaveCall(ctx)
}

// enterCall points a thread at an instruction in the vDSO that makes the call.
func (t *Thread) enterCall(call *Call) error {
	at, err := t.process.syscallInVDSO()
	if err != nil {
		return err
	}
	regs := t.regs
	regs.Rip = uint64(at)
	setCall(&regs, call)
	regs.Eflags &^= flagDirection | flagTrap
	return t.writeRegisters(&regs)
}

// leaveCall takes a thread from the entry or the end of a system call to a stop
// in which the kernel looks at interrupted calls, without an instruction of the
// program's. A call that would wait is interrupted at once.
func (t *Thread) leaveCall(ctx context.Context) error {
	if err := ptrace(ptraceInterrupt, t.tid, 0, 0); err != nil {
		return err
	}
	return t.advance(ctx, unix.PTRACE_CONT, func(s stop) bool { return s.event() == ptraceEventStop })
}
