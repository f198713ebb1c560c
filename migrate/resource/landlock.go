package resource

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/parasite"
)

// landlock: a sandbox that threads have put themselves into (landlock(7)). It is
// inherited and never left, and nothing tells of it. But who is inside may not
// look at a process outside (ptrace(2), "Ptrace access mode checking"), which
// without a sandbox may look at each other if their ids are the same.
var landlock = processKind{
	name: "Landlock domains",
	dump: func(d *ProcessDump) error {
		if !d.Inspect {
			return nil // found out before, and entered by a call of the program's only
		}
		tracer := parasite.NewTracer()
		err := findDomains(d, tracer)
		return errors.Join(err, tracer.Close())
	},
}

// findDomains has each thread look at an empty process with its ids.
func findDomains(d *ProcessDump, tracer *parasite.Tracer) error {
	type ids struct{ uid, gid uint32 }
	outside := make(map[ids]int)
	for i := range d.Process.Threads {
		t := &d.Process.Threads[i]
		of := ids{t.Credentials.UIDs[0], t.Credentials.GIDs[0]}
		pid, ok := outside[of]
		if !ok {
			var err error
			if pid, err = launchAs(d.Ctx, tracer, of.uid, of.gid); err != nil {
				return fmt.Errorf("making a process for thread %d to look at: %w", t.TID, err)
			}
			outside[of] = pid
		}
		_, err := d.Target.Thread(t.TID).Syscall(d.Ctx, unix.SYS_KCMP, uintptr(pid), uintptr(pid), kcmpVM, 0, 0)
		switch {
		case errors.Is(err, unix.EPERM):
			d.Block(migrate.CodeProcessState, "start it without its sandbox", "thread %d is in a Landlock domain, or confined by another security module", t.TID)
		case err != nil:
			return fmt.Errorf("thread %d cannot look at another process: %w", t.TID, err)
		}
	}
	return nil
}

// launchAs makes an empty process that whoever has these real ids, and no
// capability, may look at.
func launchAs(ctx context.Context, tracer *parasite.Tracer, uid, gid uint32) (int, error) {
	p, err := tracer.Launch(ctx)
	if err != nil {
		return 0, err
	}
	b := p.Thread(p.PID()).Batch(ctx)
	b.Call(unix.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid))
	b.Call(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid))
	capset(b, 0, 0, 0)
	b.Call(unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 1, 0, 0, 0)
	return p.PID(), b.RunAll(ctx)
}
