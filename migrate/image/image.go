package image

import "net/netip"

// Version of the format. A decoder refuses others by name.
const Version = 1

// PageSize is the unit of addresses, offsets and sizes of memory.
const PageSize = 4096

// Index refers to an element of one of the image's slices.
type Index = int

// None is the reference to nothing.
const None Index = -1

// An Image is everything about a process tree except the content of its
// memory. An inventory, made at preflight, is an image too: of a moment that
// has passed.
type Image struct {
	Version   int       `cbor:"version"`
	Host      Host      `cbor:"host"`
	Clocks    Clocks    `cbor:"clocks"`
	Processes []Process `cbor:"processes"` // parents before children
	Files     []File    `cbor:"files"`
	Objects   []Object  `cbor:"objects"`
	Pipes     []Pipe    `cbor:"pipes"`
	Sockets   []Socket  `cbor:"sockets"`
	// Addresses are the service addresses that go along, with the lengths of their
	// networks' prefixes.
	Addresses []netip.Prefix `cbor:"addresses"`
	// Waiting is how many connections wait in listeners to be accepted. They stay at the
	// source until the decision, and follow as AcceptQueues.
	Waiting int `cbor:"waiting,omitempty"`
	// TimeWaits are known since all packets are held.
	TimeWaits TimeWaits `cbor:"time_waits"`
}

// Host is what of a machine matters to a process that was born there.
type Host struct {
	Name   string `cbor:"name"`
	BootID string `cbor:"boot_id"` // two hosts with the same one share a kernel, and its file systems
	Kernel string `cbor:"kernel"`
	CPU    CPU    `cbor:"cpu"`
	VDSO   VDSO   `cbor:"vdso"`
}

// CPU is what a program may have found out about its processor.
type CPU struct {
	Vendor string `cbor:"vendor"`
	// Flags are the feature names of /proc/cpuinfo, sorted.
	Flags []string `cbor:"flags"`
	// XStateMask is XCR0, the vector state that the kernel saves.
	XStateMask  uint64 `cbor:"xstate_mask"`
	XStateBytes int    `cbor:"xstate_bytes"`
}

// VDSO identifies the code that the kernel maps into every process. Programs
// remember addresses in it.
type VDSO struct {
	Digest []byte `cbor:"digest"` // SHA-256 of its content
	// Parts are the kernel's special mappings in address order, each with its
	// distance from the first.
	Parts []VDSOPart `cbor:"parts"`
}

// VDSOPart is one special mapping: [vvar], [vvar_vclock], [vdso].
type VDSOPart struct {
	Name   string `cbor:"name"`
	Offset uint64 `cbor:"offset"`
	Bytes  uint64 `cbor:"bytes"`
}

// Clocks is what time it was, in nanoseconds, when the tree was frozen.
// Monotonic and Boottime are as its processes saw them.
type Clocks struct {
	Realtime  int64 `cbor:"realtime"`
	Monotonic int64 `cbor:"monotonic"`
	Boottime  int64 `cbor:"boottime"`
}
