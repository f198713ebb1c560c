// Package parasite stops another process and makes system calls inside it. It
// knows nothing of migration and is of use on its own.
//
// It owns ptrace: nobody else in this project calls it. It never decides what
// to run in a process, keeps nothing in it between two calls, and changes
// nothing of it for good except what the calls themselves do.
//
// # Threads
//
// The kernel accepts ptrace requests for a tracee only from the OS thread that
// seized it. A [Tracer] is such a thread, locked to a goroutine that is fed
// closures; the methods of its processes may be called from any goroutine, one
// at a time. [Tracer.Do] runs many of them without a hand-over each.
//
//	            ┌──────────── Tracer (one OS thread) ───────────┐
//	callers ───▶│ Process 812 ── threads 812, 813, 814, ...     │── ptrace(2), wait4(2)
//	            │ Process 900 ── ...                            │
//	            └───────────────────────────────────────────────┘
//
// # Two kinds of targets
//
// A process that was running on its own ([Tracer.Seize]) must come to no harm,
// whatever happens, the sudden death of the tracer included. Its remote calls
// are made by a piece of code, the executor, that ends by putting back every
// register and the signal mask and jumping to where the program was stopped.
// Normally the tracer takes over before that end: once a batch is done, the
// executor sleeps in short turns until it is interrupted, and goes on only when
// the thread that traced it has vanished. While there is no memory of ours that
// could say so much, in another PID namespace, and under a seccomp filter, which
// judges the executor's own calls once the tracer is dead, the tracer follows it
// from system call to system call instead (PTRACE_SYSCALL, two stops each). Should
// it die then, what is left of the batch is judged too. Nothing is
// ever single-stepped and no breakpoint is set, since both would outlive the
// tracer and kill the target. The code itself needs room before the first call can be made: it is written
// into the zero bytes behind the vDSO's image, or behind another executable
// mapping's, and cleared away again.
//
// A process that was made here ([Tracer.Launch] and what it clones) is empty
// and dies with the tracer (PTRACE_O_EXITKILL) until it is let go. Its batches
// run at full speed to a breakpoint.
//
// # System calls under way
//
// Stopping a thread interrupts the system call that it sleeps in. Most calls
// restart by themselves; some return EINTR even when no signal handler ran
// (signal(7), "Interruption of system calls and library functions by stop
// signals"). Those are made to restart as the others do at once when a thread
// stops, so that the program does not notice. Should the tracer die in the
// microseconds before it has done so, the program sees EINTR; who cannot accept
// that freezes the process's control group before it stops the process.
package parasite
