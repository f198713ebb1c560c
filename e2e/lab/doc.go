// Package lab makes several hosts out of one machine: each a network, PID,
// mount, UTS, IPC, cgroup and time namespace with daemons of its own, joined by
// a bridge. The demo, the end-to-end tests and "migratectl lab" all use it.
//
//	the machine                  switch                 host-a, host-b, ...
//	┌──────────────┐             ┌─────────────────┐    ┌──────────────────────────┐
//	│ this program │             │ bridge lan      │    │ eth0 10.77.0.1, fd77::1  │
//	│              │             │  host-a ════════╪════╪═▶                        │
//	│   control ───┼─ socket ────┼─────────────────┼───▶│ PID 1 (package pid1)     │
//	│              │             │  client ═══════ │    │  ├ migrate-agent         │
//	└──────────────┘             └─────────────────┘    │  ├ migrate-coordinator   │
//	                                                    │  └ what "lab exec" starts│
//	                                                    └──────────────────────────┘
//
// It owns the making, finding and taking down of labs and everything that lies
// in a lab's directory. It never touches the machine outside of that directory,
// of the lab's control groups and of its namespaces: nothing is mounted, no
// link or address is made, no packet is sent there. The bridge has a namespace
// of its own, that of the switch, which is a host like any other, but without
// an address.
//
// A lab holds together without a daemon or a list of processes: whatever runs
// in it is in its control groups, and its plan lies in its directory. So any
// program can find it, and can take it down in whatever state it is:
//
//   - up: directory, control groups, first processes, network, daemons
//   - down: everything in the control groups is killed, the groups are removed,
//     then the directory
//
// The hosts are this very program, run again: [Main] must stand first in main
// and in TestMain of every program that calls [Up].
//
// # Threads
//
// All functions may be called from any goroutine. Namespaces are entered and
// made only on threads of their own, which end with their goroutine. A lab's
// fields do not change once Up or Find have returned.
package lab
