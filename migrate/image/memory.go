package image

import "fmt"

// A Memory is an address space.
type Memory struct {
	Space    uint32    `cbor:"space"`
	Mappings []Mapping `cbor:"mappings"` // in address order, without overlap
	Marks    Marks     `cbor:"marks"`
	Exe      Index     `cbor:"exe"` // of Files: what /proc/PID/exe shows
	Auxv     []byte    `cbor:"auxv"`
	// Resident is how much of it, in bytes, was in memory or swap when the image
	// was taken, without that of objects.
	Resident uint64 `cbor:"resident"`
	// Guards are ranges of guard pages (MADV_GUARD_INSTALL).
	Guards []AddressRange `cbor:"guards"`
	// LockFuture are the flags of an mlockall(2) that new mappings obey.
	LockFuture int `cbor:"lock_future"`
}

// AddressRange is [Start, End).
type AddressRange struct {
	Start uint64 `cbor:"start"`
	End   uint64 `cbor:"end"`
}

// Bytes is the size of the range.
func (r AddressRange) Bytes() uint64 { return r.End - r.Start }

// Bounds of where a Hole is: far from where programs start, and within the 47
// bits that every processor has.
const (
	holeFrom = 1 << 32
	holeTo   = 1 << 46
	holeGap  = 1 << 30 // from whatever may grow
)

// Hole is an address at which size bytes are free between the occupied ranges,
// which are in order.
func Hole(size uint64, occupied []AddressRange) (uint64, error) {
	at := uint64(holeFrom)
	for _, r := range occupied {
		if r.End <= at {
			continue
		}
		if r.Start >= at+size+holeGap {
			break
		}
		at = r.End + holeGap
	}
	if at+size > holeTo {
		return 0, fmt.Errorf("no %d bytes of address space are free", size)
	}
	return at, nil
}

// Marks are the addresses that the kernel remembers of an address space
// (struct prctl_mm_map, include/uapi/linux/prctl.h).
type Marks struct {
	StartCode  uint64 `cbor:"start_code"`
	EndCode    uint64 `cbor:"end_code"`
	StartData  uint64 `cbor:"start_data"`
	EndData    uint64 `cbor:"end_data"`
	StartBrk   uint64 `cbor:"start_brk"`
	Brk        uint64 `cbor:"brk"`
	StartStack uint64 `cbor:"start_stack"`
	ArgStart   uint64 `cbor:"arg_start"`
	ArgEnd     uint64 `cbor:"arg_end"`
	EnvStart   uint64 `cbor:"env_start"`
	EnvEnd     uint64 `cbor:"env_end"`
}

// Backing says what is behind a mapping.
type Backing string

const (
	// BackingAnonymous is private memory without a file.
	BackingAnonymous Backing = "anonymous"
	// BackingFile is a regular file that the destination has too (Mapping.File);
	// private copies of its pages belong to the process's space.
	BackingFile Backing = "file"
	// BackingObject is an object of the image (Mapping.Object), shared, or
	// private with copies that belong to the process's space.
	BackingObject Backing = "object"
	// BackingKernel is a special mapping of the kernel's: [vdso], [vvar], ...
	BackingKernel Backing = "kernel"
)

// A Mapping is one stretch of an address space.
type Mapping struct {
	AddressRange
	Prot    int     `cbor:"prot"` // PROT_READ | PROT_WRITE | PROT_EXEC
	Shared  bool    `cbor:"shared"`
	Backing Backing `cbor:"backing"`
	File    Index   `cbor:"file"`
	Object  Index   `cbor:"object"`
	Offset  uint64  `cbor:"offset"` // in the file or object
	Name    string  `cbor:"name"`   // of a special mapping, or given by PR_SET_VMA_ANON_NAME
	Flags   VMFlags `cbor:"flags"`
	// Fresh, in the layout of a round, says that the mapping is another one
	// than in the round before: nothing that was placed there counts.
	Fresh []AddressRange `cbor:"fresh,omitempty"`
}

// Private reports whether stores go to the process's own space.
func (m *Mapping) Private() bool { return !m.Shared && m.Backing != BackingKernel }

// VMFlags are properties of a mapping, named as in VmFlags of
// /proc/PID/smaps (proc(5)).
type VMFlags uint32

const (
	FlagGrowsDown   VMFlags = 1 << iota // gd
	FlagLocked                          // lo
	FlagLockOnFault                     // of a locked mapping: MLOCK_ONFAULT
	FlagSequential                      // sr
	FlagRandom                          // rr
	FlagDontFork                        // dc
	FlagDontDump                        // dd
	FlagWipeOnFork                      // wf
	FlagHugePage                        // hg
	FlagNoHugePage                      // nh
	FlagMergeable                       // mg
	FlagNoReserve                       // nr
	FlagMayWrite                        // mw: a shared mapping of a file that was opened for writing
	FlagSealed                          // sl

	flagsEnd
)

// A Layout is how the address spaces look at the beginning of a round; it
// precedes the round's pages.
type Layout struct {
	Round     int            `cbor:"round"`
	Processes []ProcessState `cbor:"processes"`
	Files     []File         `cbor:"files"`
	Objects   []Object       `cbor:"objects"`
}

// ProcessState is what of a process is rebuilt while it still runs.
type ProcessState struct {
	PID      int       `cbor:"pid"`
	Space    uint32    `cbor:"space"`
	Mappings []Mapping `cbor:"mappings"`
	Threads  []int     `cbor:"threads"`
}

// ObjectKind says what an object is.
type ObjectKind string

const (
	ObjectSharedAnonymous ObjectKind = "shared-anonymous" // mmap(MAP_SHARED | MAP_ANONYMOUS)
	ObjectMemfd           ObjectKind = "memfd"            // memfd_create(2)
	ObjectDeletedFile     ObjectKind = "deleted-file"     // a regular file without a name
)

// An Object is memory that has an identity of its own.
type Object struct {
	Kind  ObjectKind `cbor:"kind"`
	Space uint32     `cbor:"space"`
	Bytes uint64     `cbor:"bytes"`
	Held  uint64     `cbor:"held"`  // how many bytes of it take up memory or disk
	Name  string     `cbor:"name"`  // of a memfd: the name given to it; of a deleted file: its last path
	Flags uint32     `cbor:"flags"` // of a memfd: MFD_EXEC or MFD_NOEXEC_SEAL
	Seals int        `cbor:"seals"`
	Mode  uint32     `cbor:"mode"`
	UID   uint32     `cbor:"uid"`
	GID   uint32     `cbor:"gid"`
}
