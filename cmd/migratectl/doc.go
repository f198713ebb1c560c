// Migratectl is the operator's command line. Each verb is a file of its own;
// this is what they share:
//
//   - main.go: from arguments to exit code
//   - root.go: the flags that every verb has
//   - exit.go: exit codes, which are part of the contract with scripts
//   - output.go: one JSON document or a table, on standard output
//   - target.go: how to reach a coordinator
//
// Standard output carries the result and nothing else; progress and errors go
// to standard error.
package main
