// Package parasitetest has victims: processes that are stopped, driven and
// moved by tests and that notice when anything of theirs has changed.
//
// A victim is the test binary itself, started again: a test package calls
// [Main] first thing in its TestMain, and its tests call [Start].
package parasitetest
