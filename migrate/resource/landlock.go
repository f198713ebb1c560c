package resource

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/migrate/procfs"
	"github.com/pagurus-project/pagurus/parasite"
)

// landlock: a sandbox that threads have put themselves into (landlock(7)). It is
// inherited and never left, and nothing tells of it. But who is inside may not
// look at a process outside (ptrace(2), "Ptrace access mode checking"), which
// without a sandbox may look at each other if their ids are the same.
var landlock = processKind{
	name: "Landlock domains",
	dump: func(d *ProcessDump) error {
		for i := range d.Process.Threads {
			t := &d.Process.Threads[i]
			// The credentials were read before.
			pid, err := d.outsiders.launch(d.Ctx, idPair{t.Credentials.UIDs[0], t.Credentials.GIDs[0]})
			if err != nil {
				return fmt.Errorf("making a process for thread %d to look at: %w", t.TID, err)
			}
			b := d.batch(t.TID)
			look := b.Call(unix.SYS_KCMP, uintptr(pid), uintptr(pid), kcmpVM, 0, 0)
			d.then(func() error {
				_, err := b.Result(look)
				switch {
				case errors.Is(err, unix.EPERM):
					d.Block(migrate.CodeProcessState, "start it without its sandbox", "thread %d is in a Landlock domain, or confined by another security module", t.TID)
				case errors.Is(err, unix.ESRCH) && len(d.Blockers) == 0: // somebody has killed it
					clear(d.outsiders.pids)
					return fmt.Errorf("what thread %d was to look at is gone: %w", t.TID, ErrTryAgain)
				case err != nil && len(d.Blockers) == 0: // it is not, if it is in another PID namespace
					return fmt.Errorf("thread %d cannot look at another process: %w", t.TID, err)
				}
				return nil
			})
		}
		return nil
	},
}

// outsiders are empty processes for threads to look at, one for each pair of
// ids. To make one takes longer than everything else about a thread, so they
// are made before the tree is stopped, and only for ids that are new after.
type outsiders struct {
	tracer *parasite.Tracer
	pids   map[idPair]int
}

type idPair struct{ uid, gid uint32 }

// NoteIDs makes them for the threads of running processes. It is to be called
// before these are stopped for a dump.
func (d *TreeDump) NoteIDs(ctx context.Context, pids []int) error {
	for _, pid := range pids {
		p := procfs.Process{PID: pid}
		tids, err := p.Threads()
		if err != nil {
			return err
		}
		for _, tid := range tids {
			status, err := p.ThreadStatus(tid)
			if errors.Is(err, procfs.ErrGone) || errors.Is(err, os.ErrNotExist) {
				continue
			}
			if err == nil {
				_, err = d.outsiders.launch(ctx, idPair{status.UIDs[0], status.GIDs[0]})
			}
			if err != nil {
				return fmt.Errorf("making a process for thread %d to look at: %w", tid, err)
			}
		}
	}
	return nil
}

// launch makes an empty process that whoever has these real ids, and no
// capability, may look at.
func (o *outsiders) launch(ctx context.Context, of idPair) (int, error) {
	if pid, ok := o.pids[of]; ok {
		return pid, nil
	}
	if o.tracer == nil {
		o.tracer, o.pids = parasite.NewTracer(), make(map[idPair]int)
	}
	p, err := o.tracer.Launch(ctx)
	if err != nil {
		return 0, err
	}
	b := p.Thread(p.PID()).Batch(ctx)
	b.Call(unix.SYS_SETRESGID, uintptr(of.gid), uintptr(of.gid), uintptr(of.gid))
	b.Call(unix.SYS_SETRESUID, uintptr(of.uid), uintptr(of.uid), uintptr(of.uid))
	capset(b, 0, 0, 0)
	b.Call(unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 1, 0, 0, 0)
	if err := b.RunAll(ctx); err != nil {
		return 0, err
	}
	o.pids[of] = p.PID()
	return p.PID(), nil
}

// close ends them.
func (o *outsiders) close() error {
	if o.tracer == nil {
		return nil
	}
	err := o.tracer.Close()
	o.tracer, o.pids = nil, nil
	return err
}
