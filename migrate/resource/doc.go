// Package resource knows the kinds of kernel state that a process has: for
// each kind one file, in which its dump at the source and its restore at the
// destination stand side by side. Two tables say which kinds there are and in
// which order they are rebuilt: processKinds (kinds.go) for state that belongs
// to a process or thread, fileKinds (files.go) for what a descriptor may refer
// to. What is met and stands in neither is a blocker with a name.
//
//	source                                   destination
//	Dump.Process ── kind.dump ──▶ image ──▶ kind.check ──▶ findings
//	  (stopped)                      └────▶ kind.restore ──▶ shell
//
// The package drives stopped processes through package parasite and reads
// /proc; it decides nothing about when. Dumping changes nothing in the process.
// Values of a Dump or a Restore belong to one goroutine.
package resource
