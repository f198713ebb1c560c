package migrate

import "fmt"

// A Finding is one thing that preflight found in the way of a migration
// (a blocker) or that the operator should know of (a warning).
type Finding struct {
	Code   Code   `json:"code"`
	Detail string `json:"detail"` // what: PID, descriptor, path or address
	Hint   string `json:"hint"`   // what to do about it
}

func (f Finding) String() string {
	s := string(f.Code) + ": " + f.Detail
	if f.Hint != "" {
		s += " (" + f.Hint + ")"
	}
	return s
}

// Findingf makes a finding with a formatted detail.
func Findingf(code Code, hint, format string, args ...any) Finding {
	return Finding{Code: code, Detail: fmt.Sprintf(format, args...), Hint: hint}
}

// A Code names a kind of finding. Codes are stable: programs match on them.
type Code string

// Codes about the request as a whole.
const (
	CodeNoSuchProcess   Code = "no-such-process"  // the PID does not exist on the source
	CodeNoSuchHost      Code = "no-such-host"     // no agent of that name has joined
	CodeHostDown        Code = "host-unreachable" // the agent does not answer
	CodeSameHost        Code = "same-host"        // the process is there already
	CodeBusy            Code = "in-migration"     // the process is in another migration
	CodeKernelThread    Code = "kernel-thread"
	CodeInit            Code = "init-process"     // PID 1 of its host
	CodeOwnDaemon       Code = "own-daemon"       // an agent or coordinator of ours
	CodeTraced          Code = "traced"           // a debugger is attached
	CodeZombie          Code = "zombie"           // it has exited already
	CodeProcessVanished Code = "process-vanished" // it exited or changed its program while we looked
)

// Codes about what the process consists of.
const (
	CodeChildren     Code = "children"         // it has child processes
	CodeSharedKernel Code = "shared-state"     // shares memory, files, ... with another process (CLONE_VM, CLONE_FILES, ...)
	CodeNamespace    Code = "namespace"        // not in its host's own namespaces
	CodeCompat       Code = "compat-process"   // 32-bit code
	CodeDescriptor   Code = "descriptor"       // a kind of descriptor that cannot move
	CodeOutsideEnd   Code = "outside-end"      // the other end is held by another process
	CodeMapping      Code = "mapping"          // a kind of mapping that cannot move
	CodeFileGone     Code = "file-unreachable" // the path leads to another file by now, or nowhere
	CodePrivilege    Code = "needs-cap-sys-resource"
	CodeProcessState Code = "process-state"  // some other state of the process that cannot move
	CodeDegraded     Code = "degraded"       // would be restored differently; --allow-degraded accepts it
	CodeAddressInUse Code = "address-in-use" // a service address that would go along is in use by another process, or in another migration
	CodeForwarded    Code = "forwarded"      // connections at an address that stays: its host passes on what comes for them
	CodeRecreated    Code = "recreated"      // the kernel does not hand something over, and begins it anew
	CodeAddressStays Code = "address-stays"  // a socket listens on all addresses, and a service address does not go along
)

// Codes about the destination.
const (
	CodePIDTaken       Code = "pid-taken"
	CodeMemory         Code = "destination-memory"
	CodeCPU            Code = "cpu-features"
	CodeVDSO           Code = "vdso-differs"
	CodeFileMissing    Code = "file-missing"
	CodeFileDiffers    Code = "file-differs"
	CodeFileNotShared  Code = "file-not-shared" // open for writing, and the destination's file is another one
	CodeAddressTaken   Code = "address-taken"   // a socket there has the address and port
	CodeAddressMissing Code = "address-missing" // of a socket or to go along, and the host does not have it or cannot
	CodeReserve        Code = "reservation-failed"
)
