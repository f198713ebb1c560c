// Workload is a set of programs that know what they should see of themselves
// and say so when they are asked: what the end-to-end tests, the demo and the
// benchmark move about.
//
//	workload memory   writes to private memory from several threads
//	workload float    keeps every vector register of several threads full
//	workload epoll    waits in every system call that a stop may interrupt
//	workload gosched  goroutines, timers, pipes and garbage
//
// A program prints "ready NAME PID" once it works. From then on it can be asked
// for its verdict (package verdict), which takes as long as checking everything
// takes: by a question at the path of -ask, whose answer lies beside it, or by
// SIGUSR1, which prints it. SIGTERM prints it, too, and ends the program, with
// exit status 1 if anything was ever wrong.
//
// # Threads
//
// What a thread checks of itself it checks alone, between two steps of its
// work; [collect] asks all threads and waits. No thread ever takes a lock while
// nothing is wrong, so none waits for another: a pause that a thread notices is
// its own.
package main
