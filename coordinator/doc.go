// Package coordinator is one coordinator: the replicated log of all
// migrations and their decisions, the scheduler that carries them out while
// this server leads, and the two ways to ask it, HTTP for people and programs
// and gRPC for agents. It knows migrations and agents' orders, never processes
// or Linux, and needs no privileges.
//
//	     operators, agents' sockets              agents
//	               │ HTTP                           │ gRPC
//	     any server│       the leader      any server│
//	               ▼                                ▼
//	authorize ─► pass on to the leader   authorize ─► pass on to the leader
//	               │                                │
//	               └─────────► scheduler ◄──────────┘
//	                              │ ▲
//	                       replog │ │ orders ─► agents
//
// A server is put together in [Start] and taken apart in [Server.Shutdown], in
// the order that their comments explain. Who is there, and where, comes from
// gossip (package member) and is believed for addresses alone.
//
// Servers find each other by gossip and form a cluster when as many as are
// expected see each other, see founding.go. A server that comes later is made
// a voter by the leader; one that is lost stays one, since to change who votes
// because somebody does not answer is how two majorities come about.
package coordinator
