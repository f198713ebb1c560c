// Package pageserver is one page's way from the memory of one host into the
// memory of another: read, classify, compress, frame, send; receive, check,
// decompress, place. It knows pages by space and number and sees them through
// a [Source] and a [Sink]: neither PIDs nor ptrace nor files. It never decides
// which pages are due, never opens or closes a connection and never logs.
//
// # Flow
//
//	Sender.Round                                          Receiver.Next
//
//	RoundSpec ─► split ─┬─► worker: read, classify, ─┐    frames ─► read ─┬─► worker: check, decompress, ─► Sink
//	                    ├─► checksum, compress,      ├─►                  ├─► place, sum up
//	                    └─► frame                    ┘ wire               └─► ...
//	             in the order of the runs     one writer               one reader     any order within a round
//
// Blocks travel between these goroutines; a fixed number of them exists, so a
// slow link or a slow sink holds up reading and memory stays bounded. The
// goroutines live as long as the call of Round or Next that needs them: a
// Sender or Receiver between two calls is only memory.
//
// A message is a barrier: Next hands it out when everything sent before it has
// been placed. So is the end of a round: nothing of a round is placed before
// all of the round before it, and what was placed is compared with what was
// sent by counts and [Digest].
//
// # Threads
//
// The methods of a Sender, and those of a Receiver, are called by one goroutine
// at a time, except Progress, which any goroutine may call at any time. A
// Sender and a Receiver may share a connection: each touches only its own
// direction of it. Source and Sink are called by several workers at once.
//
// # Cancelling
//
// A canceled context ends a call soon and leaves the stream broken: every later
// call returns the same error. To get out of a Read or Write in flight,
// the deadline of that direction is set into the past if there is one to set
// (SetReadDeadline, SetWriteDeadline, as connections have them); the connection
// is left open, so that the other direction can still carry the reason.
//
// # Stream
//
// Integers are little endian. A stream is a preface and then frames; nothing in
// it refers to the connection, so it may as well lie in a file.
//
//	preface, 16 bytes
//	offset  size  field
//	0       8     magic: 89 50 41 47 55 52 55 53 ("\x89PAGURUS")
//	8       2     version: 1
//	10      2     flags: 0, others are refused
//	12      4     CRC32C of bytes 0 to 11
//
//	frame
//	offset  size  field
//	0       1     type: 1 block, 2 zero, 3 drop, 4 round begin, 5 round end, 6 message, 7 end of stream
//	1       1     block: codec (1 none, 2 s2, 3 zstd); message: kind; else 0
//	2       2     n, entries of the range table: 1 to 256 in a block, zero or drop, else 0
//	4       4     block, zero, drop: space; round begin, round end: number of the round; else 0
//	8       4     m, length of the payload
//	12      4     checksum of the body
//	16      4     CRC32C of bytes 0 to 15, so that no length is believed unchecked
//	20      8n    range table
//	20+8n   m     payload
//
// An entry of the range table is the address of the first page (its number
// times 4096); the low twelve bits, which no page address uses, hold the number
// of pages less one. So a range has at most 4096 pages.
//
//	frame           payload                                     m at most     checksum of the body: CRC32C of
//	block           the pages of the ranges, back to back,      raw size      range table, then the CRC32C of
//	                through the codec; at most 256 pages                      each page (4 bytes each)
//	zero, drop      none                                        0             range table
//	round begin     none                                        0             nothing
//	round end       pages with content, zero pages, dropped     32            payload
//	                pages, digest (8 bytes each)
//	message         opaque                                      256 MiB       payload
//	end of stream   none                                        0             nothing
//
// A page's CRC32C is taken of its uncompressed content; it serves the frame's
// checksum and the round's digest alike, so content is summed once a side.
// Blocks, zeros and drops stand between a round begin and its round end, each
// page in at most one of them; round numbers rise. Messages may stand anywhere.
// A stream that stops without an end-of-stream frame was cut off.
//
// # Choice of the codec
//
// With [Auto] each block's codec is the one that, by what was measured lately,
// moves the most content a second: the smaller of what the workers can prepare
// and what the link takes times the compression ratio. See choose.go.
package pageserver
