// Package freezer puts processes into control groups of their own and freezes
// them there (Documentation/admin-guide/cgroup-v2.rst, "cgroup.freeze").
//
// What is frozen stays so when the agent dies. A frozen task runs nothing of
// the program's, yet it can be stopped by ptrace, and killed; ptrace's requests
// that make it run (single steps, remote calls) wait until it is thawed.
//
// It is a version 2 hierarchy that is meant, also where it is mounted beside
// version 1. A [Group] is only a path: its methods may be called from any
// goroutine.
package freezer
