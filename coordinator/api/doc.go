// Package api is the coordinators' HTTP interface as programs in Go see it: the
// documents, which client and server share, and the [Client].
//
// Any coordinator takes any request; those that do not lead pass it on. The
// client goes on to another server when one is lost, and repeats what was not
// answered, so that a change of leaders is a delay and not an error: requests
// that change something carry an idempotency key or have the same effect when
// they are repeated.
//
// The documents of the domain itself (report, check, host, process) are those
// of package migrate. Errors travel as problem+json (RFC 9457) with a stable
// code, see [Error].
package api
