// Package image says what a process consists of: plain structs that can be
// written down, without live handles. The same process gives the same image on
// any host. How the parts are read and rebuilt stands in migrate/resource.
//
//	Image ─┬─ Host        the machine that it was taken on
//	       ├─ Processes ─┬─ Mappings ──▶ Files, Objects, Space
//	       │             ├─ Descriptors ─▶ Files
//	       │             └─ Threads
//	       ├─ Files       open file descriptions, shared by descriptors ─▶ Objects, Pipes, Sockets
//	       ├─ Objects     memory that several mappings or processes share ─▶ Space
//	       ├─ Pipes
//	       └─ Sockets     pairs of unix sockets
//
// References are indices into the slices of the image. A space is where pages
// live (package pageserver): the private memory of one address space, or one
// object.
//
// An image comes from another machine: [Decode] checks everything that the
// rest relies on, so a decoded image can be used without further checks of
// ranges, orders and references. It says nothing about whether what is asked
// for is allowed; that is preflight's matter.
//
// Encoded images are CBOR (RFC 8949) in its core deterministic form, preceded
// by nothing: the stream that carries them has its own frames and checksums.
package image
