package main

import (
	"os"
	"slices"

	"github.com/pagurus-project/pagurus/e2e/workload/verdict"
)

// An answer is what one thread has to say when it has verified all it has.
type answer struct {
	thread verdict.Thread
	clock  verdict.Clock
	counts map[string]int64
}

// findings are the answers of all threads.
type findings struct {
	counts  map[string]int64
	threads []verdict.Thread
	clock   verdict.Clock
}

// collect asks threads, all at the same time, and puts their answers together.
func collect(questions []chan chan answer) findings {
	f := findings{counts: make(map[string]int64)}
	answers := make(chan answer, len(questions))
	for _, q := range questions {
		// A thread takes questions between two steps.
		go func() { q <- answers }()
	}
	for range questions {
		f.add(<-answers)
	}
	return f
}

func (f *findings) add(a answer) {
	f.threads = append(f.threads, a.thread)
	f.clock = worst(f.clock, a.clock)
	for name, n := range a.counts {
		f.counts[name] += n
	}
}

// verdict puts what was found together with what the journal has.
func (j *journal) verdict(program string, f findings) verdict.Verdict {
	slices.SortFunc(f.threads, func(a, b verdict.Thread) int { return a.TID - b.TID })
	j.mu.Lock()
	defer j.mu.Unlock()
	return verdict.Verdict{
		Program: program, PID: os.Getpid(), Host: hostname(),
		OK: len(j.problems) == 0, Problems: append([]string{}, j.problems...), Unlisted: j.unlisted,
		Counts: f.counts, Threads: f.threads, Clock: f.clock,
	}
}
