// Package control is what a lab and the first process of one of its hosts say
// to each other over a unix socket: the messages and how they travel.
//
// A connection begins with one [Request], which may carry descriptors
// (SCM_RIGHTS, unix(7)), and is answered by one [Reply]. A connection that
// runs a command goes on: towards the host [Signal]s, towards the caller one
// [Reply] with the command's end. Messages are JSON, one a line.
//
//	caller                                  PID 1 of the host
//	  │ Request{Exec} + stdin, stdout, stderr  │
//	  ├───────────────────────────────────────▶│ starts the command
//	  │◀───────────────────────────────────────┤ Reply{PID}
//	  │ Signal                                 │
//	  ├───────────────────────────────────────▶│ kill(-PID)
//	  │◀───────────────────────────────────────┤ Reply{Exit}
//
// Who hangs up before the end hangs up on the command: it gets SIGHUP.
//
// A [Conn] may be read from one goroutine and written to from another.
package control
