// Package verdict is what a workload says of itself when it is asked, and how
// to ask it: by a file, since after a move there is no other channel between a
// test and a program than the file system that all hosts share.
//
//	asker                              workload
//	  │ writes PATH with a token          │
//	  │                                   │ finds PATH, removes it, verifies everything
//	  │                                   │ writes PATH.answer with the token
//	  │ reads PATH.answer, removes it     │
//
// Both files are renamed into place: what is there is complete. Two copies of
// one program that both ran would both look for PATH, and only one would find it.
//
// [Ask] may be called from any goroutine, once at a time for a path.
package verdict
