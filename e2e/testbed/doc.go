// Package testbed is a lab with real daemons and programs to move about in it:
// what the end-to-end tests, the demo and the benchmark share. It asks for moves
// as people do, by running migratectl, and looks at hosts from outside.
//
// It owns what it makes below the directory of its lab, and a directory of
// programs. Its functions may be called from any goroutine; a [Process] is used
// by one at a time.
package testbed
