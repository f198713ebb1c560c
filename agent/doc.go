// Package agent is what runs on every host: it looks at processes, carries out
// a coordinator's orders by the two engines (packages migrate/source and
// migrate/target), and reports what becomes of them.
//
//	coordinator ──gRPC──▶ orders ──▶ session (one goroutine each) ──▶ engine ──▶ process
//	                                   │  ▲                            │
//	coordinator ◀──gRPC── reports ◀────┘  └──── page listener ◀────────┘ other agent
//	operator ──unix socket──▶ proxy ──HTTP──▶ coordinator
//
// A session is one side's part in one attempt to migrate. Its goroutine alone
// calls the engine; orders only tell it what is wanted and wait for what comes
// out, so that an order given twice, or by two leaders, is carried out once.
//
// Who may do what: orders come from coordinators alone, page connections from
// the agent that the reservation names, with its token. Before its promise a
// source may give up by itself; after it, and at the destination always, only
// the coordinators' log decides, however long that takes.
//
// What a crash would leave on the host is in the journal (see journal.go),
// which is written before it is there. Start reads it, and takes up each
// session where it stood. The package never kills or resumes anything that is
// not in it.
//
// Lock order: Agent.mu before session.mu; none is held while an engine is
// called or something is sent.
package agent
