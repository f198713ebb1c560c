// Package migrate holds the vocabulary of a migration (states, options,
// findings, reports) and its brain, the [Record] with its Apply. It is pure:
// no I/O, no clock, no logger, no import from the rest of the project.
//
// The engine lives in the packages below it; migrate/image says what a process
// consists of, migrate/source and migrate/target are the two halves of a move.
package migrate
