// Package target is the destination's half of a migration: it makes the shell,
// has pages placed in it while the source still runs, rebuilds the rest when
// the source is frozen, and lets the process go or removes the shell as it is
// told. It decides nothing, never logs, and keeps nothing but what the plan
// that it hands to its caller says.
//
//	Host.Reserve    shell: PIDs taken, clocks continued          shell.go
//	Shell.Receive   layouts and rounds ──▶ mappings and pages    layout.go, memory.go
//	                state ──▶ everything else, then frozen       receive.go, build.go
//	Shell.Commit    one 0 into cgroup.freeze                     decide.go
//	Shell.Release   the shell is killed                          decide.go
//
// Up to PREPARED the shell is traced and dies with the agent; from then on it
// is frozen in a control group of its own and survives it. Host.Recover finds
// it again.
//
// The methods of a Shell are called by one goroutine at a time.
package target
