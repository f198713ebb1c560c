package parasite

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// A Process is a process with all or some of its threads seized.
type Process struct {
	tracer   *Tracer
	pid      int
	launched bool // made here: empty, and dies with the tracer
	threads  map[int]*Thread
	memory   *os.File // /proc/PID/mem, of the address space at the time it was opened
	// seesTracer: our threads have the same ids for it, so that it can notice the
	// tracer's end.
	seesTracer bool
	room       room // where the executor can stand before anything is mapped
	scratch    Scratch
}

// A Thread is one stopped thread of a process. Its methods, like those of its
// process, are carried out by the tracer's thread.
type Thread struct {
	process     *Process
	tid         int
	regs        Registers // what it resumes with
	interrupted Interrupted
	jobStopped  bool
}

// A thread must stop within this time when it is interrupted; one that does
// not sleeps uninterruptibly in the kernel.
const stopTimeout = 5 * time.Second

// Seize makes the process pid known to the tracer. No thread is stopped or
// even seized yet. The process must not be one of the caller's own threads.
func (t *Tracer) Seize(pid int) (*Process, error) {
	memory, err := os.OpenFile("/proc/"+strconv.Itoa(pid)+"/mem", os.O_RDWR, 0)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("process %d: %w", pid, ErrGone)
		}
		return nil, err
	}
	p := &Process{tracer: t, pid: pid, threads: make(map[int]*Thread), memory: memory, seesTracer: sharesPIDs(pid)}
	return p, t.Do(func() error {
		t.processes[pid] = p
		return nil
	})
}

// sharesPIDs reports whether a process is in our own PID namespace.
func sharesPIDs(pid int) bool {
	ours, err1 := os.Readlink("/proc/self/ns/pid")
	theirs, err2 := os.Readlink("/proc/" + strconv.Itoa(pid) + "/ns/pid")
	return err1 == nil && err2 == nil && ours == theirs
}

// PID is the process's id as the caller sees it.
func (p *Process) PID() int { return p.pid }

// Tracer is the tracer that the process belongs to.
func (p *Process) Tracer() *Tracer { return p.tracer }

// Stop seizes and stops every thread of the process. When it returns without
// an error no thread can run or be born until Detach. Threads that were
// stopped before stay so. On an error the process is detached.
func (p *Process) Stop(ctx context.Context) error {
	return p.tracer.Do(func() error {
		ctx, cancel := context.WithTimeout(ctx, stopTimeout)
		defer cancel()
		// A thread that is not stopped yet can make another, so list again
		// until the list brings nothing new.
		for {
			tids, err := threadIDs(p.pid)
			if err != nil {
				return errors.Join(err, p.detach())
			}
			grown, err := p.stopThreads(ctx, tids)
			if err != nil {
				return errors.Join(err, p.detach())
			}
			if !grown {
				return nil
			}
		}
	})
}

// StopThread seizes and stops one thread only; the others run on.
func (p *Process) StopThread(ctx context.Context, tid int) error {
	return p.tracer.Do(func() error {
		ctx, cancel := context.WithTimeout(ctx, stopTimeout)
		defer cancel()
		grown, err := p.stopThreads(ctx, []int{tid})
		if err == nil && !grown && p.threads[tid] == nil {
			err = fmt.Errorf("thread %d: %w", tid, ErrGone)
		}
		return err
	})
}

// stopThreads seizes and stops those of tids that are not stopped yet, and
// reports whether there were any. Threads that exit meanwhile are left out.
func (p *Process) stopThreads(ctx context.Context, tids []int) (bool, error) {
	var fresh []int
	for _, tid := range tids {
		if p.threads[tid] != nil {
			continue
		}
		switch err := p.seizeThread(tid); {
		case errors.Is(err, ErrGone):
		case err != nil:
			return false, err
		default:
			fresh = append(fresh, tid)
		}
	}
	for _, tid := range fresh {
		switch err := p.awaitStop(ctx, tid); {
		case errors.Is(err, ErrGone):
		case err != nil:
			return false, fmt.Errorf("stopping thread %d: %w", tid, err)
		}
	}
	return len(fresh) > 0, nil
}

// Never PTRACE_O_EXITKILL here: whatever happens to the tracer, a process that
// was running on its own goes on running.
const seizeOptions = unix.PTRACE_O_TRACESYSGOOD | ptraceOptionSuspendSeccomp

func (p *Process) seizeThread(tid int) error {
	err := ptrace(ptraceSeize, tid, 0, seizeOptions)
	if errors.Is(err, unix.EPERM) && !dead(p.pid, tid) {
		return fmt.Errorf("seizing thread %d of process %d: %w", tid, p.pid, err)
	}
	if err != nil {
		return fmt.Errorf("thread %d: %w", tid, ErrGone)
	}
	return ptrace(ptraceInterrupt, tid, 0, 0)
}

// awaitStop waits until an interrupted thread has stopped, and takes it in.
func (p *Process) awaitStop(ctx context.Context, tid int) error {
	for {
		s, err := wait(ctx, tid)
		if err != nil {
			return err
		}
		switch {
		case s.gone():
			return ErrGone
		case s.event() == ptraceEventStop:
			return p.adopt(tid, s)
		}
		// A signal was on its way: let it be delivered. The interrupt is still
		// pending and stops the thread before its next instruction.
		if err := ptrace(unix.PTRACE_CONT, tid, 0, uintptr(s.signal())); err != nil {
			return err
		}
	}
}

// adopt takes a thread in that has just stopped.
func (p *Process) adopt(tid int, s stop) error {
	t := &Thread{process: p, tid: tid, jobStopped: s.status.StopSignal() != unix.SIGTRAP}
	if err := t.readRegisters(); err != nil {
		return err
	}
	p.threads[tid] = t
	if p.launched {
		return t.SetSignalMask(launchedMask)
	}
	return t.noteInterrupted()
}

// Detach puts everything back and lets all threads of the process go on. A
// launched process runs from wherever its registers point.
func (p *Process) Detach() error {
	return p.tracer.Do(p.detach)
}

func (p *Process) detach() error {
	var errs []error
	if !p.launched && p.scratch.mapped() {
		errs = append(errs, p.dropScratch(context.Background()))
	}
	tids := p.ThreadIDs()
	// Of a dead process the leader can be collected only as the last one.
	if i := slices.Index(tids, p.pid); i >= 0 {
		tids = append(slices.Delete(tids, i, i+1), p.pid)
	}
	for _, tid := range tids {
		err := ptrace(unix.PTRACE_DETACH, tid, 0, 0)
		if errors.Is(err, ErrGone) {
			err = reap(tid)
		}
		errs = append(errs, err)
		delete(p.threads, tid)
	}
	delete(p.tracer.processes, p.pid)
	errs = append(errs, p.memory.Close())
	return errors.Join(errs...)
}

// Kill kills a launched process and collects it.
func (p *Process) Kill() error {
	return p.tracer.Do(p.kill)
}

func (p *Process) kill() error {
	err := unix.Kill(p.pid, unix.SIGKILL)
	if errors.Is(err, unix.ESRCH) {
		err = nil
	}
	return errors.Join(err, p.detach())
}

// reap collects a thread that was killed while it was traced: before its
// tracer has done so, the process's parent does not hear of its end.
func reap(tid int) error {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	for {
		s, err := wait(ctx, tid)
		if errors.Is(err, ErrGone) || err == nil && s.gone() {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// ThreadIDs are the stopped threads in ascending order.
func (p *Process) ThreadIDs() []int {
	return slices.Sorted(maps.Keys(p.threads))
}

// Thread is the stopped thread tid, or nil.
func (p *Process) Thread(tid int) *Thread { return p.threads[tid] }

// ReadMemory fills buf from the process's memory at addr, through any protection.
func (p *Process) ReadMemory(addr uintptr, buf []byte) error {
	if _, err := p.memory.ReadAt(buf, int64(addr)); err != nil {
		return fmt.Errorf("reading %d bytes at %#x of process %d: %w", len(buf), addr, p.pid, err)
	}
	return nil
}

// WriteMemory writes buf to the process's memory at addr, through the
// protection of private mappings.
func (p *Process) WriteMemory(addr uintptr, buf []byte) error {
	if _, err := p.memory.WriteAt(buf, int64(addr)); err != nil {
		return fmt.Errorf("writing %d bytes at %#x of process %d: %w", len(buf), addr, p.pid, err)
	}
	return nil
}

// threadIDs lists the threads of a process, those that are dead left out.
func threadIDs(pid int) ([]int, error) {
	dir := "/proc/" + strconv.Itoa(pid) + "/task"
	entries, err := os.ReadDir(dir)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("process %d: %w", pid, ErrGone)
		}
		return nil, err
	}
	tids := make([]int, 0, len(entries))
	for _, e := range entries {
		tid, err := strconv.Atoi(e.Name())
		if err != nil {
			return nil, fmt.Errorf("reading %s: unexpected entry %q", dir, e.Name())
		}
		tids = append(tids, tid)
	}
	if len(tids) == 1 && dead(pid, tids[0]) {
		return nil, fmt.Errorf("process %d: %w", pid, ErrGone)
	}
	return tids, nil
}

// dead reports whether a thread has exited; a process whose leader has is
// still there as long as other threads are (proc(5), states X and Z).
func dead(pid, tid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/stat", pid, tid))
	if err != nil {
		return true
	}
	// The state follows the command, which stands in parentheses and may itself
	// hold any character.
	end := slices.Index(stat, ')')
	for i := end; i < len(stat) && i >= 0; i++ {
		if stat[i] == ')' {
			end = i
		}
	}
	return end < 0 || end+2 >= len(stat) || stat[end+2] == 'Z' || stat[end+2] == 'X'
}
