package parasite

import "golang.org/x/sys/unix"

// Interrupted is the system call that a thread sleeps in, if it does. Its
// registers then hold -Restart as the result, and the kernel decides on the
// way back to user space whether to restart it or to return EINTR because a
// signal handler runs (handle_signal, arch/x86/kernel/signal.c).
type Interrupted struct {
	Nr      int // -1: none
	Args    [6]uint64
	Restart unix.Errno
}

// Codes of include/linux/errno.h, never seen by user space.
const (
	RestartSys       unix.Errno = 512
	RestartNoIntr    unix.Errno = 513
	RestartNoHand    unix.Errno = 514
	RestartRemainder unix.Errno = 516 // ERESTART_RESTARTBLOCK: what is left of a time is known to the kernel alone
)

// InSystemCall reports whether there is a call at all.
func (i Interrupted) InSystemCall() bool { return i.Nr >= 0 }

// Interrupted is the system call that the thread sleeps in.
func (t *Thread) Interrupted() Interrupted { return t.interrupted }

// noteInterrupted finds out which system call a thread that has just stopped
// sleeps in. One that would return EINTR for the mere stop is made to behave
// like those that do not: it restarts, unless a signal handler runs first.
func (t *Thread) noteInterrupted() error {
	t.interrupted = Interrupted{Nr: -1}
	nr, result := int(int64(t.regs.Orig_rax)), int64(t.regs.Rax)
	if nr < 0 || result >= 0 || result < -int64(RestartRemainder) {
		return nil
	}
	code := unix.Errno(-result)
	switch code {
	case RestartSys, RestartNoIntr, RestartNoHand, RestartRemainder:
	case unix.EINTR:
		if !returnsEINTRAfterStop[nr] {
			return nil
		}
		code = RestartNoHand
		t.regs.Rax = -uint64(code)
		if err := t.writeRegisters(&t.regs); err != nil {
			return err
		}
	default:
		return nil
	}
	t.interrupted = Interrupted{
		Nr:      nr,
		Args:    [6]uint64{t.regs.Rdi, t.regs.Rsi, t.regs.Rdx, t.regs.R10, t.regs.R8, t.regs.R9},
		Restart: code,
	}
	return nil
}

// beforeCall are the thread's registers set back to just before the system
// call that it sleeps in, as the kernel itself does it when no handler runs
// (arch_do_signal_or_restart, arch/x86/kernel/signal.c).
func (t *Thread) beforeCall() Registers {
	regs := t.regs
	if !t.interrupted.InSystemCall() {
		return regs
	}
	regs.Rip -= uint64(len(syscallInstruction))
	regs.Rax = regs.Orig_rax
	if t.interrupted.Restart == RestartRemainder {
		regs.Rax = unix.SYS_RESTART_SYSCALL
	}
	regs.Orig_rax = ^uint64(0)
	return regs
}

// returnsEINTRAfterStop are the calls that return EINTR after a mere stop
// (signal(7)). Those on sockets do when a time-out is set (sock_intr_errno,
// include/net/sock.h); had they transferred anything they would return that.
// connect(2) is not among them: made again, it answers EALREADY.
var returnsEINTRAfterStop = map[int]bool{
	unix.SYS_EPOLL_WAIT:      true,
	unix.SYS_EPOLL_PWAIT:     true,
	unix.SYS_EPOLL_PWAIT2:    true,
	unix.SYS_SEMOP:           true,
	unix.SYS_SEMTIMEDOP:      true,
	unix.SYS_RT_SIGTIMEDWAIT: true,
	unix.SYS_IO_GETEVENTS:    true,
	unix.SYS_IO_PGETEVENTS:   true,
	unix.SYS_READ:            true,
	unix.SYS_READV:           true,
	unix.SYS_WRITE:           true,
	unix.SYS_WRITEV:          true,
	unix.SYS_RECVFROM:        true,
	unix.SYS_RECVMSG:         true,
	unix.SYS_RECVMMSG:        true,
	unix.SYS_SENDTO:          true,
	unix.SYS_SENDMSG:         true,
	unix.SYS_SENDMMSG:        true,
	unix.SYS_SENDFILE:        true,
	unix.SYS_SPLICE:          true,
	unix.SYS_ACCEPT:          true,
	unix.SYS_ACCEPT4:         true,
}
