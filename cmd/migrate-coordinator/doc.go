// Migrate-coordinator is one of the servers that keep the record of all
// migrations, decide them and carry them out by way of the agents. It needs no
// privileges, and runs one or three times in a cluster.
//
// It ends with 0 after SIGTERM or SIGINT, with 1 when something failed, and
// with 2 when starting it again the same way cannot help: wrong usage, or a
// configuration that is wrong.
package main
