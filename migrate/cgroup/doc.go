// Package cgroup freezes, kills and removes control groups of version 2
// (Documentation/admin-guide/cgroup-v2.rst). It knows nothing of controllers.
// A [Group] is a path; its methods may be called from any goroutine, and again
// after an error.
package cgroup
