// Package pid1 is the first process of a lab host. It is born into the host's
// namespaces, gives them what a host has of its own, and is then to the host
// what init is to a machine:
//
//   - it mounts /proc, /sys, the host's part of cgroup2, /run, /dev/shm,
//     /dev/mqueue, /dev/pts and /srv/local, all else being the machine's;
//   - it reaps whatever loses its parent;
//   - it keeps daemons running, each in a control group of its own, as systemd
//     does with Restart=always and KillMode=mixed;
//   - it runs the commands that arrive on the control socket.
//
// It makes no namespaces and no links: package lab does, from outside. It never
// touches anything of the machine: propagation is cut before the first mount,
// and a mount point that the machine lacks is made on a file system laid over it.
//
//	/            cgroups of a host, seen from inside
//	├─ init      this process
//	├─ exec      what "lab exec" starts
//	└─ daemons/NAME
//
// # Threads
//
// One goroutine reaps, one serves each connection, one supervises each daemon.
// Processes are started and reaped under [reaper]'s lock, so that the end of a
// child never comes before its beginning. All namespaces were entered before
// the program began, so every thread is in the same ones.
package pid1
