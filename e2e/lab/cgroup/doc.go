// Package cgroup is what a lab needs of control groups, version 2: finding the
// hierarchy from outside of a host, and emptying and removing groups.
//
// Everything that runs in a lab is in a group of its host, whoever started it:
// to end a lab is to empty its groups and remove them. The package neither
// makes groups nor moves processes; all functions may be called from any
// goroutine.
package cgroup
