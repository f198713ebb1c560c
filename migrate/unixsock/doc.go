// Package unixsock knows the names of unix sockets (unix(7)): it asks
// sock_diag(7) who has which and who is connected to whom, and gives a name to
// a new socket while another one still has it. It owns SOCK_DIAG_BY_FAMILY for
// AF_UNIX, the ioctl SIOCUNIXFILE, and bind(2) where the bytes of the name
// matter. It knows nothing of processes, queues and options.
//
// # A name without its file
//
// What getsockname(2) tells is the bytes that bind(2) was given. That they lead
// to a file is true at that moment only: the kernel takes them along the
// thread's root and working directory, and keeps the file (unix_bind_bsd,
// net/unix/af_unix.c). Connections find the socket by the file's inode
// (unix_find_bsd), wherever that is by then. So the name is bound by a thread
// whose root is an empty directory beside the real place, and the file is moved
// there when its time has come:
//
//	Plan       DIR, and a name for the staging directory: nothing is made yet
//	Bind       DIR/.pagurus-RANDOM/...  ◀─ the thread's root, and the new socket's file
//	           DIR/sock                 ◀─ the running source's: it gets the connections
//	Publish    DIR/.pagurus-RANDOM/... ──rename(2)──▶ DIR/sock; the rest is removed
//	Discard    the staging directory is removed, DIR/sock is left alone
//
// Where the name leads at the source, by way of links, ".." or a working
// directory that has long changed, is of no importance to that: a root's ".." is
// the root itself, and directories on the way are made as plain ones. Where the
// file is to be is a question of its own, which [FileOf] answers.
//
// A [Staged] is data. Write it down before Bind, and again after it (which adds
// what file it is); Publish and Discard can be repeated, also by another process.
//
// # Whom it trusts
//
// The caller is root, the directories may belong to anybody. Below DIR no path
// leads out of it (os.Root), DIR is still the directory that was planned for,
// and Publish replaces sockets alone. That DIR is where the program would have
// been allowed to make a file is not looked at.
//
// # Threads
//
// All functions may be called from any goroutine. [Look] and [List] tell of the
// network namespace of the thread that they run on; Bind uses that of the
// socket.
package unixsock
