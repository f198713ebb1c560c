package parasite

// What x/sys/unix lacks of ptrace(2), from include/uapi/linux/ptrace.h,
// include/uapi/linux/elf.h and include/uapi/linux/wait.h.
const (
	ptraceSeize                = 0x4206
	ptraceInterrupt            = 0x4207
	ptracePeekSigInfo          = 0x4209
	ptraceSigMask              = 0x420a // PTRACE_GETSIGMASK
	ptraceSetSigMask           = 0x420b
	ptraceSeccompFilter        = 0x420c // PTRACE_SECCOMP_GET_FILTER
	ptraceSeccompMetadata      = 0x420d // PTRACE_SECCOMP_GET_METADATA
	ptraceRseqConfiguration    = 0x420f // PTRACE_GET_RSEQ_CONFIGURATION
	ptraceSyscallUserDispatch  = 0x4211 // PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG
	ptraceSetSyscallDispatch   = 0x4210
	ptraceOptionSuspendSeccomp = 1 << 21
	ptraceEventStop            = 128

	ntPrStatus   = 1
	ntX86XState  = 0x202
	nt386IOPerm  = 0x201
	ntX86ShStack = 0x204

	// Flag of PTRACE_PEEKSIGINFO: the queue of the process, not of the thread.
	peekSigInfoShared = 1

	// Marks a stop of PTRACE_O_TRACESYSGOOD.
	syscallStopSignal = 0x80

	sigSetBytes = 8
)

// SigInfoBytes is the size of struct siginfo (include/uapi/asm-generic/siginfo.h).
const SigInfoBytes = 128

// SigInfo is one queued signal as the kernel's struct siginfo.
type SigInfo [SigInfoBytes]byte

// Signal is the signal's number (si_signo).
func (s *SigInfo) Signal() int { return int(int32(le32(s[0:]))) }

// Code says where the signal came from (si_code).
func (s *SigInfo) Code() int { return int(int32(le32(s[8:]))) }

func le32(b []byte) uint32 {
	return uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24
}
