// Package procfs reads /proc/PID: parsers of its files into plain values, and
// [Process], which opens them. It changes nothing and stops nobody; what it
// returns of a running process may be out of date at once.
//
// Parsers take bytes and are fuzzed: the content is another kernel's word, or
// another program's (a command name, a path). The files are described in
// proc(5) and Documentation/filesystems/proc.rst.
package procfs
