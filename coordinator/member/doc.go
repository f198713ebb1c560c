// Package member is membership: who is there, where, and whether it seems to
// be alive. Coordinators and agents gossip with each other; the messages are
// encrypted with a key that all share. It is the only package that knows
// hashicorp/memberlist.
//
// A host may have an agent and a coordinator: these are two members, told
// apart by role. What a member says of itself proves nothing, and that a
// member is called dead does not make it stop: membership is a hint where to
// find somebody, never a fence. Who is who is decided by package trust at each
// connection, and who runs what by the replicated log.
//
//	Join ─► gossip ─► events ─► members ─► Members, Changed
//	  └► search: seeds that do not answer are tried again, for ever
//
// All methods may be called from any goroutine.
package member
