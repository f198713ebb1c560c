// Migrate-agent runs as root on every host whose processes are to move: it
// carries out what the coordinators order, and passes their API on to local
// users.
//
// It ends with 0 after SIGTERM or SIGINT, with 1 when something failed, and
// with 2 when starting it again the same way cannot help: wrong usage, or a
// configuration that is wrong. Processes that have arrived here run on without
// it, and one that is frozen by a promise waits for the next agent.
package main
