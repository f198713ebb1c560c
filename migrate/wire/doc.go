// Package wire is what the two halves of a migration say to each other over
// the page connection, beside pages.
//
//	source                                          destination
//	  │ Hello ─────────────────────────────────────────▶ │  which migration, and the token
//	  │ ◀───────────────────────────── Reply(Welcome)    │
//	  │ page stream: Layout, round 0, Barrier ─────────▶ │
//	  │ ◀───────────────────────────── Reply(Placed 0)   │
//	  │ ...                                              │
//	  │ message Layout, last round, message State ─────▶ │
//	  │ ◀───────────────────────────── Reply(Prepared)   │  or Reply(Failed), at any time
//	  │ ... the decision is taken elsewhere ...          │
//	  │ message Signals, end of stream ────────────────▶ │  before the source's copy is disposed of
//
// Hello and replies are frames of their own: a length (4 bytes, little endian)
// and a CBOR map. Everything else travels as messages of the page stream
// (package pageserver), which has checksums. All of it is bounded and checked
// before it is used.
package wire
