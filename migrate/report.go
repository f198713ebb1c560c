package migrate

import (
	"net/netip"
	"time"
)

// A Report is the document that `migratectl move --json` and `show --json`
// print and that the HTTP API serves. Field names are part of the contract;
// times are milliseconds, sizes are bytes.
type Report struct {
	ID         string             `json:"id"`
	PID        int                `json:"pid"`
	Command    string             `json:"command,omitempty"`
	From       string             `json:"from"`
	To         string             `json:"to"`
	State      State              `json:"state"`
	Settled    bool               `json:"settled"` // nothing is left to do or undo on either side
	Reason     string             `json:"reason"`
	Ended      bool               `json:"ended,omitempty"` // at the source: of an aborted migration, by itself or by somebody
	Blockers   []Finding          `json:"blockers"`
	Warnings   []Finding          `json:"warnings"`
	Addresses  []netip.Prefix     `json:"addresses"` // service addresses that go along
	Rounds     []Round            `json:"rounds"`
	DowntimeMS float64            `json:"downtime_ms"`
	TotalMS    float64            `json:"total_ms"`
	Bytes      uint64             `json:"bytes"`      // page content, uncompressed
	WireBytes  uint64             `json:"wire_bytes"` // what crossed the network for it
	PhasesMS   map[string]float64 `json:"phases_ms"`
	Created    time.Time          `json:"created"`
	Options    Options            `json:"options"`
	Progress   *Progress          `json:"progress,omitempty"` // of a running migration only
	// PassedOn are connections that have moved and whose packets still come to another host.
	PassedOn []PassedOn `json:"passed_on,omitempty"`
}

// PassedOn are TCP connections at an address that a host keeps: it passes on what comes for them.
type PassedOn struct {
	Host        string `json:"host"`
	To          string `json:"to"`
	Connections int    `json:"connections"`
}

// A Round is one pass of pre-copy, or the last one, made while frozen.
type Round struct {
	N         int     `json:"n"`
	Pages     uint64  `json:"pages"`
	Bytes     uint64  `json:"bytes"`
	WireBytes uint64  `json:"wire_bytes"`
	MS        float64 `json:"ms"`
	Frozen    bool    `json:"frozen,omitempty"` // the last round
}

// Progress is what a running migration does at this moment. It is never
// written to the log.
type Progress struct {
	Round          int     `json:"round"`
	RoundPages     uint64  `json:"round_pages"` // to send in this round
	RoundSent      uint64  `json:"round_sent"`  // of these, sent
	Bytes          uint64  `json:"bytes"`
	WireBytes      uint64  `json:"wire_bytes"`
	RateBytes      float64 `json:"rate_bytes"`       // page content a second
	DirtyRateBytes float64 `json:"dirty_rate_bytes"` // written by the process a second
	EstimateMS     float64 `json:"estimate_ms"`      // downtime if it were frozen now
}

// Keys of Report.PhasesMS. The first three are wall time from the start of a
// migration; the others add up to the downtime.
const (
	PhasePreflight = "preflight"
	PhasePrecopy   = "precopy"
	PhaseStop      = "stop"     // threads stopped, last changes found
	PhaseDump      = "dump"     // kernel state read, group frozen
	PhaseTransfer  = "transfer" // last pages and state on their way
	PhaseRestore   = "restore"  // the destination builds everything
	PhaseDecide    = "decide"   // promise, decision in the log, order to resume
	PhaseResume    = "resume"   // group thawed
)

// A Process is one process as `ps` and `check` show it.
type Process struct {
	PID           int    `json:"pid"`
	PPID          int    `json:"ppid"`
	Command       string `json:"command"`
	UID           int    `json:"uid"`
	State         string `json:"state"` // one letter, as in /proc/PID/stat
	Threads       int    `json:"threads"`
	ResidentBytes uint64 `json:"resident_bytes"`
	Sockets       int    `json:"sockets"`
	Host          string `json:"host"`
	Migration     string `json:"migration,omitempty"` // the one it is in
}

// A Check is the answer to "can it move?".
type Check struct {
	Movable  bool      `json:"movable"`
	Blockers []Finding `json:"blockers"`
	Warnings []Finding `json:"warnings"`
	Tree     []Process `json:"tree"`
}

// A Host is one host as `hosts` shows it.
type Host struct {
	Name        string  `json:"name"`
	Address     string  `json:"address"`
	Status      string  `json:"status"` // alive, suspect, dead, left
	Kernel      string  `json:"kernel"`
	CPUs        int     `json:"cpus"`
	MemoryBytes uint64  `json:"memory_bytes"`
	FreeBytes   uint64  `json:"free_bytes"`
	Load1       float64 `json:"load1"`
	Agent       string  `json:"agent"` // its version
	Migrations  int     `json:"migrations"`
}
