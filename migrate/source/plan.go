package source

import (
	"slices"

	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/migrate/resource"
	"github.com/pagurus-project/pagurus/parasite"
	"github.com/pagurus-project/pagurus/tcprepair/forward"
)

// A Plan is what is to be undone if the agent dies: plain data, to be kept
// where it outlives the agent but not the boot. It says what may have been done;
// undoing what was not is harmless.
type Plan struct {
	Migration string        `json:"migration"`
	Epoch     uint64        `json:"epoch"`
	Processes []PlanProcess `json:"processes"`
	// Group is the directory of the control group made for the migration.
	Group string `json:"group,omitempty"`
	// Injecting says that a userfaultfd may have been left open in the processes.
	Injecting bool `json:"injecting,omitempty"`
	// Locks is set while the tree's file locks are released: of its image, what
	// is needed to take them back.
	Locks *image.Image `json:"locks,omitempty"`
	// Hold names what holds the packets to addresses that go along (package hold).
	Hold string `json:"hold,omitempty"`
	// StayingHold does that for connections at addresses that do not go along, and Forward is how
	// their packets are passed on when the process has left.
	StayingHold string `json:"staying_hold,omitempty"`
	// Passing says that they may be, and that those that are guests here are not any more.
	Passing bool             `json:"passing,omitempty"`
	Forward *forward.Forward `json:"forward,omitempty"`
	// Connections are those that may be in repair mode.
	Connections []resource.Connection `json:"connections,omitempty"`
	// Looked are sockets whose queues are being looked at.
	Looked []resource.Looked `json:"looked,omitempty"`
	// SocketFiles are those of the tree's unix sockets: where it has left, nobody is there.
	SocketFiles []image.SocketFile `json:"socket_files,omitempty"`
	// FrozenAt is set from just before the final freeze on: CLOCK_BOOTTIME of the
	// agent, in nanoseconds.
	FrozenAt int64 `json:"frozen_at,omitempty"`
}

// A PlanProcess is one process of the tree.
type PlanProcess struct {
	PID       int    `json:"pid"`
	StartTime uint64 `json:"start_time"` // as in /proc/PID/stat: another process may get the PID
	Origin    string `json:"origin"`     // the control group that it came from
	// Userfaultfds are descriptors that were there before Injecting.
	Userfaultfds []int `json:"userfaultfds,omitempty"`
	// Scratch is memory of ours that may be mapped in the process.
	Scratch *parasite.Scratch `json:"scratch,omitempty"`
}

// settled is the plan when the processes are as they were, but for their
// control group.
func (p Plan) settled() Plan {
	p.Injecting, p.Locks, p.Connections, p.Looked, p.SocketFiles, p.FrozenAt = false, nil, nil, nil, nil, 0
	p.Forward, p.Passing = nil, false
	p.Processes = slices.Clone(p.Processes)
	for i := range p.Processes {
		p.Processes[i].Userfaultfds, p.Processes[i].Scratch = nil, nil
	}
	return p
}

// locksOf is the part of an image that taking locks back needs.
func locksOf(m *image.Image) *image.Image {
	part := &image.Image{Version: m.Version, Files: make([]image.File, len(m.Files))}
	for i := range m.Files {
		part.Files[i].Locks, part.Files[i].Path = m.Files[i].Locks, m.Files[i].Path
	}
	for i := range m.Processes {
		p := &m.Processes[i]
		part.Processes = append(part.Processes, image.Process{PID: p.PID, Descriptors: p.Descriptors, Locks: p.Locks})
	}
	return part
}
