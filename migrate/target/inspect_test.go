package target_test

import (
	"cmp"
	"slices"
	"testing"

	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/migrate/source"
)

// inspect is what only the process itself can ask the kernel for, and so is not
// in a snapshot. Of the image that the engine takes, what is another one with
// each look is left out: ids, times, where the leader stands in its waiting.
func inspect(t *testing.T, host *source.Host, pid int) image.Process {
	t.Helper()
	in, err := host.Inspect(t.Context(), source.Config{
		Migration: "look", PID: pid, Options: migrate.Options{AllowDegraded: true}, Save: func(source.Plan) error { return nil },
	})
	if err != nil {
		t.Fatal("inspecting:", err)
	}
	if in.Inventory == nil {
		t.Fatal("inspecting:", in.Blockers)
	}
	p := in.Inventory.Processes[0]
	p.PID, p.PPID, p.PGID, p.SID = 0, 0, 0, 0
	p.Memory, p.Descriptors, p.Locks = image.Memory{}, nil, nil
	for i := range p.Threads {
		thread := &p.Threads[i]
		for j := range p.Timers {
			if p.Timers[j].Thread == thread.TID {
				p.Timers[j].Thread = i
			}
		}
		thread.TID = i
		if i == 0 {
			thread.Registers, thread.XState, thread.Call = nil, nil, nil
		}
	}
	// The kernel lists them in the order of a hash table.
	slices.SortFunc(p.Timers, func(a, b image.Timer) int { return cmp.Compare(a.ID, b.ID) })
	for i := range p.Timers {
		p.Timers[i].Value = min(p.Timers[i].Value, 1)
	}
	for i := range p.IntervalTimers {
		p.IntervalTimers[i].Value = min(p.IntervalTimers[i].Value, 1)
	}
	return p
}

// hasOneOfEach makes sure that a comparison compares something.
func hasOneOfEach(t *testing.T, p image.Process, root bool) {
	t.Helper()
	missing := func(what string, there bool) {
		t.Helper()
		if !there {
			t.Errorf("the program has no %s", what)
		}
	}
	missing("three interval timers", len(p.IntervalTimers) == 3)
	missing("timers", len(p.Timers) > 0)
	missing("signal actions", len(p.Actions) > 0)
	missing("pending signals", len(p.Pending) > 0 && len(p.Threads[0].Pending) > 0)
	missing("membarrier or settings", len(p.Switches) > 0)
	for i := range p.Threads {
		thread := &p.Threads[i]
		missing("alternate stack", thread.AltStack.Bytes > 0)
		missing("robust list", thread.RobustList != 0 && thread.RobustLen != 0)
		missing("restartable sequences", thread.Rseq.Address != 0)
		missing("address to clear", thread.ClearTID != 0)
	}
	if root {
		missing("secure bits", p.Threads[0].Credentials.SecureBits != 0)
		missing("signal at the parent's death", len(p.Threads[0].Switches) > 0)
	} else {
		missing("filters", len(p.Threads[0].Filters) > 0)
		missing("no_new_privs", p.Threads[0].Credentials.NoNewPrivs)
	}
}
