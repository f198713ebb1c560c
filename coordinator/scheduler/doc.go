// Package scheduler carries migrations out while its server leads. It proposes
// what happened to the replicated log, and does what the records there say is
// outstanding: it never acts on anything that the log does not hold, except
// that PREPARED and the promise, without which there is no COMMIT, are held in
// memory until the decision's entry carries them.
//
//	log ─► Changed ─► worker, one a migration ──orders──► agents
//	 ▲                  │        ▲                          │
//	 └── Apply ◄────────┘        └──── Report, Decision ◄───┘
//
// A worker is level-triggered: it reads the record, does the step that the
// record's state asks for until the state changes, and reads again. So it does
// not matter which leader did what before; a step that was done already is
// done again, and every order to an agent is idempotent. Workers run only in
// [Scheduler.Lead], and all of them end before it returns.
//
// Inside the freeze there is one entry and one order: the report that completes
// PREPARED and promise wakes the worker, which writes the decision and at once
// orders the destination to run.
//
// It knows agents as clients of package migratev1 and the log as an interface,
// neither raft nor addresses.
//
// Locks: Scheduler.mu before worker.mu before the log's own. All exported
// methods may be called from any goroutine; Changed, which the log calls, does
// not block.
package scheduler
