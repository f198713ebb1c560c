// Package dirty finds out which pages of a process have changed. It reads and
// protects page tables from outside; it never reads a page's content and never
// stops the process.
//
// There are two trackers, since kernels differ in what they offer:
//
//   - [Async]: userfaultfd write protection that the kernel resolves by itself,
//     read by the PAGEMAP_SCAN ioctl (Linux 6.7). After one call inside the
//     target, which makes the userfaultfd, the target pays for write faults only.
//   - [SoftDirty]: the soft-dirty bit of page-table entries
//     (CONFIG_MEM_SOFT_DIRTY). Reading and clearing it is not atomic, so the
//     target must stand still while it is done.
//
// [Detect] says which of them work here, by trying.
//
// # What a tracker tells
//
//	Track/Collect ──▶ Changes, mapping by mapping, of which each page is in at most one:
//	   Fresh    ranges that are another mapping than before: whatever is known of
//	            them is void, and everything in them is listed below
//	   Content  pages that hold something and were written
//	   Gone     pages that hold nothing of their own (any more): unmapped by
//	            madvise, or unmodified pages of a private file mapping
//	   Guards   guard pages (MADV_GUARD_INSTALL)
//
// Of a shared mapping, Content are the pages that may have been written through
// it; whether they hold something is for the object to say.
//
// A tracker belongs to one address space and one goroutine at a time.
package dirty
