package api

import (
	"fmt"
	"strings"

	"github.com/pagurus-project/pagurus/migrate"
)

// MoveRequest asks for a migration.
type MoveRequest struct {
	PID     int             `json:"pid" minimum:"-2147483648" maximum:"2147483647" doc:"the PID as seen on the source"`
	From    string          `json:"from,omitempty" maxLength:"63" doc:"the host that it is on; a request by way of an agent's socket may leave it out"`
	To      string          `json:"to" minLength:"1" maxLength:"63" doc:"the host that it is to go to"`
	Options migrate.Options `json:"options,omitzero"`
	Key     string          `json:"key,omitempty" maxLength:"200" doc:"requests with the same key are the same request; the header Idempotency-Key does as well"`
}

// CheckRequest asks whether a process could move, and changes nothing.
type CheckRequest struct {
	PID     int             `json:"pid" minimum:"-2147483648" maximum:"2147483647" doc:"the PID as seen on the source"`
	From    string          `json:"from,omitempty" maxLength:"63" doc:"the host that it is on; a request by way of an agent's socket may leave it out"`
	To      string          `json:"to,omitempty" maxLength:"63" doc:"the host that it would go to; without it only the source is looked at"`
	Options migrate.Options `json:"options,omitzero"`
}

// Migrations is a list of migrations, oldest first.
type Migrations struct {
	Migrations []migrate.Report `json:"migrations"`
}

// Hosts is a list of hosts by name.
type Hosts struct {
	Hosts []migrate.Host `json:"hosts"`
}

// Addresses is a list of service addresses in order.
type Addresses struct {
	Addresses []migrate.Address `json:"addresses"`
}

// AddressRequest gives a host a service address.
type AddressRequest struct {
	Address string `json:"address" maxLength:"64" doc:"with the length of its network's prefix, as in 10.0.0.100/24"`
	Host    string `json:"host" minLength:"1" maxLength:"63" doc:"the host that is to have it, which is in that network"`
}

// Processes is a list of processes by host and PID.
type Processes struct {
	Processes []migrate.Process `json:"processes"`
	// Hosts that did not answer, so that the list is not complete.
	Unreachable []string `json:"unreachable"`
}

// Status is one server's own view of the cluster. It is answered by the server
// that was asked and is never passed on.
type Status struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	// Leader is the name of the server that leads, empty if this one knows none.
	Leader string `json:"leader"`
	// Leads says that this server leads and has taken up all migrations.
	Leads   bool   `json:"leads"`
	State   string `json:"state" doc:"of raft: Leader, Follower, Candidate or Shutdown"`
	Term    uint64 `json:"term"`
	Last    uint64 `json:"last_index"`
	Applied uint64 `json:"applied_index"`
	// Bootstrapped says that the server is or was part of a cluster.
	Bootstrapped bool `json:"bootstrapped"`
	Expect       int  `json:"expect" doc:"number of servers that form a new cluster, 0 to wait to be added"`
	// Founders are the servers that this one would form a new cluster with now.
	Founders []string `json:"founders"`
	Servers  []Server `json:"servers"`
	// Hosts are those whose agents have been heard of.
	Hosts []HostStatus `json:"hosts"`
}

// Server is a coordinator that is part of the cluster or has been heard of.
type Server struct {
	Name    string `json:"name"`
	Address string `json:"address" doc:"of raft"`
	Voter   bool   `json:"voter" doc:"part of the cluster"`
	Status  string `json:"status" doc:"of gossip: alive, dead, left or unknown"`
}

// HostStatus is a host as gossip knows its agent.
type HostStatus struct {
	Name    string `json:"name"`
	Status  string `json:"status" doc:"of gossip: alive, dead or left"`
	Version string `json:"version"`
}

// Codes of errors. They are stable: programs match on them.
const (
	CodeInvalid     = "invalid-request"
	CodeForbidden   = "forbidden"
	CodeNotFound    = "not-found"
	CodeTooLate     = "too-late"    // there is a decision already
	CodeKeyReused   = "key-reused"  // the idempotency key belongs to another request
	CodeNoLeader    = "no-leader"   // no server leads at present, or the leader was lost: try again
	CodeUnreachable = "unreachable" // a host does not answer
	CodeInternal    = "internal"

	CodeAddressTaken = "address-taken" // there is such a service address
	CodeAddressUnfit = "address-unfit" // the host cannot have this service address
	CodeAddressHeld  = "address-held"  // the service address is in a migration
	// The service address is written down, and its host does not have it yet.
	CodeAddressPending = "address-pending"
)

// Error is a request that failed, as problem+json.
type Error struct {
	Status int    `json:"status" doc:"HTTP status"`
	Title  string `json:"title" doc:"the HTTP status in words"`
	Code   string `json:"code" doc:"what is wrong, for programs"`
	Detail string `json:"detail" doc:"what is wrong, for people"`
	// Errors are the single findings of a request that is not valid.
	Errors []string `json:"errors,omitempty"`
}

func (e *Error) Error() string {
	if len(e.Errors) == 0 {
		return e.Detail
	}
	return fmt.Sprintf("%s: %s", e.Detail, strings.Join(e.Errors, "; "))
}

// GetStatus is the HTTP status. The name is that of huma's interface for errors.
func (e *Error) GetStatus() int { return e.Status }

// ContentType turns the type of a JSON document into that of a problem; huma
// asks for it.
func (e *Error) ContentType(string) string { return "application/problem+json" }

// KeyHeader is the header that may carry a request's idempotency key.
const KeyHeader = "Idempotency-Key"
