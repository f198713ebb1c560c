package resource

import (
	"context"
	"fmt"
	"os"

	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/migrate/procfs"
	"github.com/pagurus-project/pagurus/parasite"
)

// A processKind is one kind of state that belongs to a process or its threads.
// Each of its parts may be nil.
type processKind struct {
	name string
	// dump reads the state of a stopped process into its image, or reports why
	// it cannot be moved.
	dump func(*ProcessDump) error
	// check says, at the destination's preflight, what would not work there.
	check func(*Check, *image.Process)
	// restore rebuilds it in a stopped shell.
	restore func(*ProcessRestore) error
}

// processKinds are all of them, in the order of restoring: what needs
// privileges comes before the credentials, and what a later step would undo
// comes after it.
var processKinds = []processKind{
	namespaces,
	session,
	memoryMarks,
	directories,
	descriptors,
	recordLocks,
	personality,
	signalActions,
	threadRegistrations,
	scheduling,
	protection,
	limits,
	timers,
	pendingSignals,
	membarrier,
	seccomp,
	credentials,
	landlock,
	switches,
}

// A ProcessDump is the taking of one process's image. It has three steps, so
// that all remote calls of a thread are made in one batch: every kind's dump
// reads /proc and adds its calls; the batches run; what dump has left to do
// with the results (then) is done.
type ProcessDump struct {
	*TreeDump
	Ctx     context.Context
	Proc    procfs.Process
	Target  *parasite.Process // all threads stopped
	Process *image.Process

	batches  map[int]*parasite.Batch
	unixEnds []unixSocketFound
	after    []func() error
	statuses map[int]procfs.Status // that were read, by thread
}

// leader is the thread in which calls on behalf of the process are made.
func (d *ProcessDump) leader() *parasite.Thread { return d.Target.Thread(d.Proc.PID) }

// batch is the batch of one thread.
func (d *ProcessDump) batch(tid int) *parasite.Batch {
	b := d.batches[tid]
	if b == nil {
		b = d.Target.Thread(tid).Batch(d.Ctx)
		d.batches[tid] = b
	}
	return b
}

// status is what the kernel shows of a thread, which stands still: several kinds
// look at it.
func (d *ProcessDump) status(tid int) (procfs.Status, error) {
	if s, ok := d.statuses[tid]; ok {
		return s, nil
	}
	s, err := d.Proc.ThreadStatus(tid)
	if err == nil {
		d.statuses[tid] = s
	}
	return s, err
}

// then leaves f to be done when the batches have run.
func (d *ProcessDump) then(f func() error) { d.after = append(d.after, f) }

// run reads all kinds of a process.
func (d *ProcessDump) run() error {
	d.batches, d.statuses = make(map[int]*parasite.Batch), make(map[int]procfs.Status)
	for _, k := range processKinds {
		if k.dump == nil {
			continue
		}
		done := len(d.after)
		if err := k.dump(d); err != nil {
			return fmt.Errorf("reading %s of process %d: %w", k.name, d.Proc.PID, err)
		}
		for i, f := range d.after[done:] {
			d.after[done+i] = func() error {
				if err := f(); err != nil {
					return fmt.Errorf("reading %s of process %d: %w", k.name, d.Proc.PID, err)
				}
				return nil
			}
		}
	}
	for tid, b := range d.batches {
		if err := b.Run(d.Ctx); err != nil {
			return fmt.Errorf("reading the state of thread %d: %w", tid, err)
		}
	}
	return d.runAfter()
}

// runAfter does what then has left.
func (d *ProcessDump) runAfter() error {
	for _, f := range d.after {
		if err := f(); err != nil {
			return err
		}
	}
	return nil
}

// A Check is the destination's look at an inventory.
type Check struct {
	*Findings
	Ctx           context.Context
	Host          image.Host // this one
	Source        image.Host
	AllowDegraded bool
	Image         *image.Image
	Digests       *Digests
	// Frozen says that the process stands still: what is different here has not
	// become so at the source, too, since it was looked at.
	Frozen bool
}

// CheckImage reports everything that would not work at this host.
func (c *Check) CheckImage() {
	checkHost(c)
	for i := range c.Image.Processes {
		for _, k := range processKinds {
			if k.check != nil {
				k.check(c, &c.Image.Processes[i])
			}
		}
	}
	for i := range c.Image.Files {
		c.CheckFile(&c.Image.Files[i])
	}
	c.CheckHomes()
}

// CheckFile reports what would not work about one open file, or one that is mapped.
func (c *Check) CheckFile(f *image.File) {
	if k := fileKinds[f.Kind]; k.check != nil {
		k.check(c, f)
	}
}

// A ProcessRestore is the rebuilding of one process.
type ProcessRestore struct {
	*TreeRestore
	Ctx     context.Context
	Shell   *parasite.Process // with all its threads, stopped
	Process *image.Process
}

func (r *ProcessRestore) leader() *parasite.Thread { return r.Shell.Thread(r.Process.PID) }

func (r *ProcessRestore) batch() *parasite.Batch { return r.leader().Batch(r.Ctx) }

// proc is the shell seen through /proc.
func (r *ProcessRestore) proc() procfs.Process { return procfs.Process{PID: r.Process.PID} }

// write writes one of the shell's files in /proc.
func (r *ProcessRestore) write(name, content string) error {
	return os.WriteFile(r.proc().Path(name), []byte(content), 0)
}

// run rebuilds all kinds.
func (r *ProcessRestore) run() error {
	for _, k := range processKinds {
		if k.restore == nil {
			continue
		}
		if err := k.restore(r); err != nil {
			return fmt.Errorf("restoring %s of process %d: %w", k.name, r.Process.PID, err)
		}
	}
	return nil
}
