// Package replog is the replicated log: it owns hashicorp/raft, its files and
// its connections, and keeps a [migrate.Ledger] on every server that has
// applied the same events in the same order.
//
//	Apply(event) ─► raft ─► majority's disks ─► fsm ─► Ledger.Apply ─► Config.Changed
//	                                             │
//	Record, Records ◄────────────────────────────┘   (what this server has applied)
//
// It decides nothing about migrations: what an event does to a record is
// package migrate's, what is proposed is package scheduler's. An error of
// [Log.Apply] is either ErrNotLeader, then nothing was written, or leaves it
// open; whoever got such an error reads again behind a [Log.Barrier].
//
// All methods may be called from any goroutine. Config.Changed is called from
// raft's own goroutine, in the order of the log, and must not block or call
// back into Apply.
package replog
