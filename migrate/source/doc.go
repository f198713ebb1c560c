// Package source is the source's half of a migration: it takes the memory and
// the state of a running process (of several, later) to a destination, and
// either gives the process up or leaves it as if nothing had happened.
//
// # Flow
//
//	Start     quick checks; nothing is done to the process
//	Run   1   Hello ─▶ Welcome                                           (replies.go)
//	      2   a control group of its own, for the freeze; dirty tracking (prepare.go)
//	      3   rounds while it runs: Layout, pages ─▶ Placed              (rounds.go, survey.go)
//	          until the rest fits the downtime that is allowed           (pace.go)
//	      4   the freeze: stop, dump, release locks, freeze,             (freeze.go)
//	          last Layout and pages, State ─▶ Prepared
//	      5   the promise: from here on the log alone decides
//	Dispose   ABORT did not come: forward late signals, kill             (dispose.go)
//	Resume    undo everything, from wherever it is                       (resume.go)
//
// # What keeps the process safe
//
// A [Plan] of what is to be undone is handed to [Config].Save before each step
// that needs it, so that [Host.Recover] can undo it after the agent's death.
// The process is never stopped by ptrace unless its control group was frozen
// first: should the agent die within these microseconds, the process stands
// still and does not see its system calls interrupted (package parasite).
//
//	                 group      threads          agent dies
//	pre-copy         thawed     run              it runs on
//	stop             frozen     being seized     frozen, Recover and Resume
//	dump             thawed     ptrace-stopped   it runs on; Resume takes out what was left in it
//	last round       frozen     ptrace-stopped   frozen, Recover and Resume
//
// # Threads
//
// A [Host] may be used from any goroutine. Of a [Migration] one method runs at a
// time; they wait for each other. To end Run early, cancel its context, then
// call Resume.
package source
